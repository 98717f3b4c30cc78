"""What keeps bad samples and rising losses from going unnoticed."""
