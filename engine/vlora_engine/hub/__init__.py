"""The Hugging Face Hub in and out. Importing this loads neither huggingface_hub nor torch.

An adapter on the Hub is named ``hf://org/name[@revision][/subfolder]``; a task of a subspace
there ``hf://org/name[@revision][/subfolder]:TASK``. Headers are read remotely (`remote`); what is
to be worked on is fetched into huggingface_hub's own cache (`fetch`), at one commit that is known.
"""

from __future__ import annotations

from vlora_engine.adapters.address import AdapterRef, address_of, is_address

__all__ = ["AdapterRef", "address_of", "is_address"]
