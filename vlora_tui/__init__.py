"""Terminal workbench for collections of LoRA adapters."""
