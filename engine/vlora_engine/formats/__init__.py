"""Read adapters in every file format there is a module for, and write PEFT, MLX and GGUF."""
