"""Terminal workbench for collections of LoRA adapters."""

import logging

# The screen is ours: what the engine has to say comes as findings and events, not by its log.
logging.getLogger("vlora_engine").addHandler(logging.NullHandler())
