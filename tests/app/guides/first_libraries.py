"""What the READMEs of the two first libraries tell their readers to run, in our own words.

The calls are theirs and the names that they use; ``vlora`` and ``lorashare`` stand where they
stand there, and `test_first_libraries` changes the import alone. What no machine of a test has is
stood in for, each thing by name: see `test_first_libraries.STAND_INS`.
"""

from __future__ import annotations

VLORA_COMMANDS = """
vlora compress adapters/task_0 adapters/task_1 adapters/task_2 -o shared_subspace/
vlora info shared_subspace/
vlora info shared_subspace/ --json
vlora export shared_subspace/ task_0 -o exported_adapter/
    --alpha 32 --base-model meta-llama/Llama-3-8B --target-modules q_proj,v_proj
vlora add shared_subspace/ adapters/new_task --task-id new_task --incremental
vlora analyze adapters/task_0 adapters/task_1 adapters/task_2
vlora merge adapters/task_0 adapters/task_1 adapters/task_2
    -o merged/ --method ties --density 0.5
vlora validate shared_subspace/
vlora diff shared_subspace/ task_0 task_1
vlora benchmark shared_subspace/
"""

# By what the block is about. `subspace`, `adapters` and the like are of an earlier block there.
VLORA = {
    "quickstart": """
from vlora import SharedSubspace, load_adapter

adapters = [load_adapter(f"adapters/task_{i}") for i in range(5)]
subspace = SharedSubspace.from_adapters(adapters, num_components=16)
newcomer = load_adapter("adapters/new_task")
projection = subspace.project(newcomer, task_id="new_task")
subspace.add_task(projection)
subspace.absorb(load_adapter("adapters/another_task"), new_task_id="another")
weights = subspace.reconstruct("new_task")
subspace.save("made_in_python/")
subspace = SharedSubspace.load("made_in_python/")
""",
    "quickstart on what is there": """
from vlora import SharedSubspace, load_adapter

subspace = SharedSubspace.load("shared_subspace/")
newcomer = load_adapter("adapters/new_task")
projection = subspace.project(newcomer, task_id="new_task")
subspace.add_task(projection)
subspace.absorb(load_adapter("adapters/another_task"), new_task_id="another")
weights = subspace.reconstruct("new_task")
subspace.save("shared_subspace/")
subspace = SharedSubspace.load("shared_subspace/")
""",
    "several tasks": """
from vlora import VLoRAModel, SharedSubspace

subspace = SharedSubspace.load("shared_subspace/")
model = VLoRAModel(base_model, subspace, lora_alpha=32)
model.set_task("task_0")
first = model(input_ids)
model.set_task("task_1")
output = model(input_ids)
print(model.available_tasks)
""",
    "merged into the base": """
from vlora import VLoRAModel

model = VLoRAModel(base_model, subspace)
model.merge(task_id="task_0")
output = model(input_ids)
model.unmerge()
model.set_task("task_1")
""",
    "nf4": """
subspace.quantize(method="nf4")
subspace.quantize(method="nf4", double_quant=True)
subspace.quantize(method="nf4", quantize_loadings=True)
""",
    "packed": """
from vlora import SharedSubspace

subspace.save_quantized("shared_subspace/")
subspace = SharedSubspace.load("shared_subspace/")
""",
    "base in 4 bit": """
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from vlora import VLoRAModel, SharedSubspace

four_bit = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
)
base_model = AutoModelForCausalLM.from_pretrained("model-name", quantization_config=four_bit)
subspace = SharedSubspace.load("shared_subspace/")
model = VLoRAModel(base_model, subspace, compute_dtype=torch.bfloat16)
print(model.qlora_info)
model.set_task("task_0")
output = model(input_ids)
""",
    "full stack": """
stats = subspace.full_stack_compression(
    base_model_params=7_000_000_000, base_model_bits=16, quantized_bits=4
)
""",
    "training": """
from vlora import SharedSubspace, orthogonal_init, SubspaceTrainer

subspace = SharedSubspace.load("shared_subspace/")
orthogonal_init(subspace, "new_task")
trainer = SubspaceTrainer(subspace, "new_task", lr=1e-3)
print(f"Trainable params: {trainer.num_trainable_params}")
losses = []
for batch in dataloader:
    loss = compute_loss(model, batch)
    losses.append(trainer.step(loss))
trainer.write_back()
subspace.save("updated_subspace/")
""",
    "router": """
from vlora import TaskRouter, SharedSubspace

subspace = SharedSubspace.load("shared_subspace/")
router = TaskRouter.from_subspace(subspace, input_dim=4096)
x = get_input_embedding(batch)
blended = router.blend_loadings(x, subspace)
subspace.tasks["__routed__"] = blended
recon = subspace.reconstruct("__routed__")
""",
    "analysis": """
from vlora import load_adapter, compute_similarity_matrix, find_clusters, adapter_diff

adapters = [load_adapter(f"adapters/task_{i}") for i in range(10)]
similar = compute_similarity_matrix(adapters)
clusters = find_clusters(similar, threshold=0.9)
diff = adapter_diff(adapters[0], adapters[1])
""",
    "merging": """
from vlora import load_adapter, task_arithmetic, ties_merge, dare_merge

adapters = [load_adapter(f"adapters/task_{i}") for i in range(3)]
averaged = task_arithmetic(adapters, weights=[0.5, 0.3, 0.2])
trimmed = ties_merge(adapters, density=0.5)
dropped = dare_merge(adapters, drop_rate=0.5, seed=42)
""",
    "k of every layer": """
from vlora import SharedSubspace

subspace = SharedSubspace.from_adapters(adapters, adaptive_k=True, variance_threshold=0.9)
""",
    "bits": """
subspace.quantize(bits=8)
subspace.quantize(method="nf4")
subspace.quantize(method="nf4", double_quant=True)
stats = subspace.compression_stats()
print(f"Ratio: {stats['compression_ratio']:.1f}x")
print(f"Stored: {stats['total_params_compressed']:,} params")
print(f"Before: {stats['total_params_original']:,} params")
""",
    "streaming": """
from vlora import SharedSubspace

subspace = SharedSubspace.from_adapters_streaming(adapter_paths, num_components=8)
""",
    "growing": """
subspace.absorb_incremental(new_adapter, "new_task")
subspace.to(device="cuda", dtype=torch.float16)
""",
    "trainer of transformers": """
from vlora import SharedSubspace, orthogonal_init
from vlora.integrations.huggingface import VLoRACallback

subspace = SharedSubspace.load("shared_subspace/")
orthogonal_init(subspace, "new_task")
callback = VLoRACallback(subspace, "new_task", lr=1e-3)
trainer = Trainer(model=base_model, args=args, callbacks=[callback])
trainer.train()
subspace.save("updated_subspace/")
""",
    "numbers": """
from vlora.ops import compute_svd, gram_schmidt, nf4_pack
""",
}

# The reference that ends the README: each call that no block above makes.
VLORA_REFERENCE = """
from vlora import (
    SharedSubspace, TaskRouter, VLoRAModel, absorb_task, extract_adapter, find_outliers,
    init_subspace, load_adapter, load_adapter_from_hub, save_adapter, subspace_coverage,
)
from vlora.ops import (
    NF4_QUANT_TABLE, compute_svd, explained_variance_ratio, gram_schmidt, incremental_svd_update,
    nf4_pack, nf4_quantize_dequantize, nf4_unpack, project_onto_subspace,
    reconstruct_from_subspace, select_num_components,
)

subspace = SharedSubspace.load("shared_subspace/")
parameters = subspace.get_trainable_params("task_0")
subspace.quantize(bits=8, method="symmetric")
model = VLoRAModel(base_model, subspace, lora_alpha=None, compute_dtype=None)
model.set_task("task_0")
deltas = model.reconstruct_state_dict("task_0")
model.compile()
model.clear_task()
router = TaskRouter(input_dim=16, num_tasks=3)
coverage = subspace_coverage(subspace, load_adapter("adapters/task_0"))
outliers = find_outliers(adapters, threshold=2.0)
from_hub = load_adapter_from_hub("org/cola_lora")
save_adapter(from_hub, "from_hub")
anew = init_subspace(adapter_paths)
absorb_task(anew, "adapters/new_task", "new_task")
extract_adapter(anew, "new_task", "extracted")
absorb_task(subspace, "adapters/new_task", "new_task")
extract_adapter(subspace, "task_0", "extracted_0")
first = subspace.layer_names[0]
shapes = subspace.components_a[first].shape, subspace.components_b[first].shape
spectra = subspace.singular_values_a[first], subspace.singular_values_b[first]
"""

LORASHARE_COMMANDS = """
lorashare compress adapter1/ adapter2/ adapter3/ -o ./compressed -k 32
lorashare compress adapter1/ adapter2/ adapter3/ -o ./compressed -k 32 --device cuda
lorashare compress adapter1/ adapter2/ adapter3/ -o ./compressed -k 32 --layer-by-layer
lorashare compress adapter1/ adapter2/ adapter3/ -o ./compressed -k 32 --chunk-size 10
"""

LORASHARE_COMMANDS_ON = """
lorashare info ./compressed
lorashare reconstruct ./compressed --adapter cola -o ./reconstructed
lorashare reconstruct ./compressed --all -o ./all_reconstructed
"""

LORASHARE = {
    "quickstart": """
from lorashare import SHAREModel

share = SHAREModel.from_adapters(
    ["path/to/cola_lora", "path/to/mrpc_lora", "path/to/rte_lora"], num_components=32
)
share.summary()
share.reconstruct("cola_lora", output_dir="./reconstructed/cola")
""",
    "on a model": """
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import torch

base_model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
tokenizer = AutoTokenizer.from_pretrained("roberta-base")
model = share.apply(base_model, adapter_name="cola_lora")
inputs = tokenizer("I liked that film!", return_tensors="pt", truncation=True, max_length=512)
model.eval()
with torch.no_grad():
    outputs = model(**inputs)
    predictions = torch.softmax(outputs.logits, dim=-1)
""",
    "kept": """
from lorashare import SHAREModel

share.save_pretrained("./my_share_checkpoint")
share = SHAREModel.from_pretrained("./my_share_checkpoint")
share.push_to_hub("username/my-share-model")
""",
    "scaling": """
from lorashare import SHAREModel

share = SHAREModel.from_adapters(adapters, num_components=32, device="cuda")
share = SHAREModel.from_adapters(adapters, num_components=32, layer_by_layer=True)
share = SHAREModel.from_adapters(many_adapters, num_components=32, chunk_size=10)
share = SHAREModel.from_adapters(many_adapters, num_components=32, device="cuda", chunk_size=10)
""",
    "from the Hub": """
from lorashare import SHAREModel

share = SHAREModel.from_adapters(
    ["org/cola_lora", "org/mrpc_lora", "org/rte_lora"],
    num_components="auto",
    variance_threshold=0.95,
)
""",
    "logging": """
import logging
from lorashare import SHAREModel

logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
share = SHAREModel.from_adapters(adapters, num_components=32)
""",
    "reference": """
from lorashare import SHAREModel

share = SHAREModel.from_adapters(
    {"cola_lora": "path/to/cola_lora", "mrpc_lora": "path/to/mrpc_lora"}, num_components="auto"
)
figures = share.reconstruction_error("cola_lora", original_path="path/to/cola_lora")
""",
}

# The calls on a model that is there, on what a plain `compress` wrote.
LORASHARE_ON_DEFAULT = """
from transformers import AutoModelForSequenceClassification
from lorashare import SHAREModel

share = SHAREModel.from_pretrained("shared_subspace")
share.summary()
tensors = share.reconstruct("cola_lora", output_dir="./reconstructed/cola")
figures = share.reconstruction_error("cola_lora", original_path="path/to/cola_lora")
base_model = AutoModelForSequenceClassification.from_pretrained("roberta-base")
model = share.apply(base_model, adapter_name="cola_lora")
share.save_pretrained("./my_share_checkpoint")
share = SHAREModel.from_pretrained("./my_share_checkpoint")
share.push_to_hub("username/my-share-model")
"""
