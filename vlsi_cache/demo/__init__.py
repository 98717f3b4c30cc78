"""The demo: easy-VQA, a small Qwen2-VL teacher and a smaller student, end to end on a CPU."""
