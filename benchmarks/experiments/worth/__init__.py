"""What the layers are worth: experiments whose predictions were written down before the runs."""
