"""Helpers without domain knowledge: files, safetensors, names, progress, devices, memory."""
