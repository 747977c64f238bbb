"""Every kind of bad input, with the text that a person gets: what, where, found, what to do."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.catalog.scanner import scan
from vlora_engine.errors import (
    AdapterError,
    CorruptFileError,
    HubOfflineError,
    MissingPathError,
    NotFoundError,
    ParameterError,
    UnsupportedAdapterError,
    VLoRAError,
)
from vlora_engine.utils.tensor_writer import encode_header

A = f"{make.PREFIX}transformer.h.0.attn.c_attn.lora_A.weight"
B = f"{make.PREFIX}transformer.h.0.attn.c_attn.lora_B.weight"
SAFETENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refusal(path, kind=AdapterError, **kwargs):
    """The text of the error that opening ``path`` raises; the catalog must show the same."""
    with pytest.raises(kind) as caught:
        open_adapter(path, **kwargs)
    assert type(caught.value) is kind
    if not kwargs and os.path.isdir(path):
        (info,) = scan(path).adapters
        assert info.error is not None
        assert info.error.what == caught.value.what
    return str(caught.value)


def tensors(**changes):
    changed = {**make.factors(), **changes}
    return {key: value for key, value in changed.items() if value is not None}


# --- tensors that make no adapter ---------------------------------------------------------------


def test_half_a_pair(tmp_path):
    text = refusal(make.write(tmp_path, tensors(**{B: None})))

    assert "Module 'transformer.h.0.attn.c_attn' has only one of its two factors" in text
    assert f"{tmp_path / SAFETENSORS}: {A}" in text
    assert f"expected: {B} beside it" in text


def test_shapes_that_do_not_multiply(tmp_path):
    text = refusal(make.write(tmp_path, tensors(**{A: torch.zeros(5, 12)})))

    assert "The two factors of a module do not multiply" in text
    assert f"{tmp_path / SAFETENSORS}: {A}" in text
    assert "found: A [5, 12] and B [36, 4]" in text


@pytest.mark.parametrize("shape", [(0, 12), (0,), (4,), (4, 0)])
def test_zero_size_and_flat_tensors_are_shards_that_were_not_gathered(shape, tmp_path):
    text = refusal(make.write(tmp_path, tensors(**{A: torch.zeros(shape)})))

    assert "A factor has no elements, or is not a matrix" in text
    assert f"found: shape {list(shape)}" in text
    assert "GatheredParameters" in text


def test_integer_factors(tmp_path):
    text = refusal(make.write(tmp_path, tensors(**{B: torch.zeros(36, 4, dtype=torch.int8)})))

    assert "is not made of floating-point numbers" in text
    assert f"{B}\n" in text
    assert "found: I8" in text


def test_rank_that_disagrees_with_the_config(tmp_path):
    path = make.write(tmp_path, settings=make.config(r=16))

    text = refusal(path)

    assert "The rank of 4 of 4 modules disagrees with the config" in text
    assert f"{tmp_path / SAFETENSORS}: {A}" in text
    assert "expected: rank 16, as r or rank_pattern of adapter_config.json says" in text
    assert "found: rank 4, shape [4, 12]" in text
    assert f'set "r": 4 in {tmp_path / CONFIG}' in text


def test_rank_pattern_that_the_tensors_deny(tmp_path):
    path = make.write(tmp_path, settings=make.config(rank_pattern={"h.1.attn.c_attn": 2}))

    assert "The rank of 1 of 4 modules disagrees with the config" in refusal(path)


def test_two_adapters_in_one_file(tmp_path):
    other = A.replace("lora_A.weight", "lora_A.legal.weight")
    path = make.write(tmp_path, tensors(**{other: torch.zeros(4, 12)}))

    text = refusal(path)

    assert "two tensors for the same factor" in text
    assert "save each adapter into its own directory" in text


def test_grouped_convolution(tmp_path):
    path = make.write(
        tmp_path,
        {
            f"{make.PREFIX}conv.lora_A.weight": torch.zeros(4, 3, 3, 3),
            f"{make.PREFIX}conv.lora_B.weight": torch.zeros(6, 2, 1, 1),
        },
    )

    assert "grouped convolution" in refusal(path, UnsupportedAdapterError)


def test_a_whole_model_is_no_adapter(tmp_path):
    path = make.write(tmp_path, {"model.layers.0.mlp.down_proj.weight": torch.zeros(2, 3)})

    text = refusal(path)

    assert "The file has no LoRA factors" in text
    assert "model.layers.0.mlp.down_proj.weight" in text
    assert "a whole model is not an adapter" in text


def test_names_that_would_write_on_the_terminal(tmp_path):
    path = make.write(tmp_path, tensors(**{"x\x1b[2J.weight": torch.zeros(1)}))

    text = refusal(path, CorruptFileError)

    assert "characters that no module has" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("pickle", [False, True], ids=["safetensors", "pickle"])
def test_names_with_half_a_letter(pickle, tmp_path):
    path = make.write(tmp_path, tensors(**{"xZ.weight": torch.zeros(1)}), pickle=pickle)
    file = path / ("adapter_model.bin" if pickle else SAFETENSORS)
    if pickle:
        half = {"x\ud800.weight": torch.zeros(1)}
        torch.save(tensors() | half, file)
    else:
        header, data = encode_header([("xZZZZZZ.weight", "F32", (1,))])[0], b"\0" * 4
        file.write_bytes(header.replace(b"ZZZZZZ", b"\\ud800") + data)

    with pytest.raises(CorruptFileError) as caught:
        open_adapter(path)

    text = str(caught.value)
    assert "half a letter" in text
    text.encode()


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "what", "found"),
    [
        (b'{"r": 8,', "is not JSON", "line 1 column 9"),
        (b"", "is not JSON", "Expecting value"),
        (b"\x80{}", "is not JSON", "codec can't decode"),
        (b'{"lora_alpha": NaN}', "is not JSON", "NaN is not JSON"),
        (b'{"base_model_name_or_path": "\\ud800"}', "is not JSON", "half a letter"),
        (b"[" * 100_000, "is not JSON", "recursion"),
        (b"[1, 2]", "is not a JSON object", "a JSON array"),
        (b"null", "is not a JSON object", "a JSON null"),
        (b" " * 4_000_001, "is too large to be one", "more than that"),
    ],
)
def test_configs_that_are_none(raw, what, found, tmp_path):
    make.write(tmp_path)
    (tmp_path / CONFIG).write_bytes(raw)

    text = refusal(tmp_path, CorruptFileError)

    assert what in text
    assert str(tmp_path / CONFIG) in text
    assert found in text


def test_config_missing(tmp_path):
    make.write(tmp_path)
    (tmp_path / CONFIG).unlink()

    text = refusal(tmp_path)

    assert "has no adapter_config.json: its scale is not known" in text
    assert "copy it from where the adapter was trained" in text


def test_tensors_missing(tmp_path):
    make.write(tmp_path)
    (tmp_path / SAFETENSORS).unlink()

    text = refusal(tmp_path, MissingPathError)

    assert "has a config but no tensors" in text
    assert "expected: adapter_model.safetensors or adapter_model.bin" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "8"),
        ("r", 0),
        ("r", -4),
        ("r", 4.0),
        ("r", True),
        ("lora_alpha", "16"),
        ("lora_alpha", [16]),
        ("lora_alpha", 1e400),
        ("use_rslora", "yes"),
        ("rank_pattern", [8]),
        ("rank_pattern", {"c_attn": "8"}),
        ("alpha_pattern", {"c_attn": None}),
        ("target_modules", {"c_attn": 1}),
        ("target_modules", ["c_attn", 3]),
        ("base_model_name_or_path", 7),
        ("peft_type", 3),
    ],
)
def test_fields_of_the_wrong_type(field, value, tmp_path):
    make.write(tmp_path)
    # json writes 1e400 as Infinity, which other writers write as 1e400.
    text = json.dumps(make.config(**{field: value})).replace("Infinity", "1e400")
    (tmp_path / CONFIG).write_text(text)

    text = refusal(tmp_path)

    assert f"The field '{field}' of the adapter's config is not what it should be" in text
    assert str(tmp_path / CONFIG) in text
    assert f"mend '{field}' in that file" in text


@pytest.mark.parametrize(
    "pattern", ["[", "a" * 6000 + "|b", r"(\w+)+\1\1x", "(b?){0,99999}(_|){3}"]
)
def test_patterns_that_cannot_be_used_are_named(pattern, tmp_path):
    path = make.write(tmp_path, settings=make.config(alpha_pattern={pattern: 2}))

    text = refusal(path)

    assert "A module pattern in 'alpha_pattern'" in text
    assert str(tmp_path / CONFIG) in text


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(x|x)*y", ".*.*.*.*.*x", "a?" * 26 + "a" * 26, "(a|a)" * 26]
)
def test_patterns_that_python_would_try_for_ever_are_matched_at_once(pattern, tmp_path):
    name = "h." + "a" * 60 + ".b"
    settings = make.config(alpha_pattern={pattern: 2, ".*b": 16}, target_modules=["b"])
    make.write(tmp_path, make.factors({name: (4, 4)}), settings=settings)

    assert open_adapter(tmp_path).scales == {name: 16 / 4}


# --- kinds that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name", "remedy"),
    [
        ({"use_dora": True}, "DoRA", "use_dora=False"),
        ({"kasa_config": {"beta": 1e-4}}, "KaSA", "without kasa_config"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA", "merge it into its base model"),
        ({"use_qalora": True}, "QA-LoRA", "merge it into its base model"),
        ({"target_parameters": ["mlp.experts.up"]}, "target_parameters", "target_modules"),
        ({"init_lora_weights": "pissa"}, "PiSSA", "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, "PiSSA", "path_initial_model"),
        ({"init_lora_weights": "OLoRA"}, "OLoRA", "path_initial_model"),
        ({"init_lora_weights": "corda"}, "CorDA", "path_initial_model"),
        ({"init_lora_weights": "lora_ga"}, "LoRA-GA", "path_initial_model"),
        ({"init_lora_weights": "loftq"}, "LoftQ", "init_lora_weights to true"),
        ({"peft_type": "IA3"}, "of PEFT's type IA3", "save_as_lora"),
    ],
)
def test_other_kinds_are_refused_by_name_and_carried_along_when_told(
    fields, name, remedy, tmp_path
):
    path = make.write(tmp_path, settings=make.config(**fields))

    text = refusal(path, UnsupportedAdapterError)
    carried = load_adapter(path, allow_unsupported=True)

    assert name in text
    assert remedy in text
    assert "allow_unsupported=True" in text
    assert str(tmp_path / CONFIG) in text
    kept = 2 * len(carried.layer_names) + len(carried.rest)
    assert kept == len(make.factors())


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", None])
def test_ways_to_begin_that_leave_the_base_alone_are_fine(init, tmp_path):
    make.write(tmp_path, settings=make.config(init_lora_weights=init))

    assert len(open_adapter(tmp_path).modules) == 4


def test_real_dora_is_refused_and_passes_through_untouched(tmp_path):
    pytest.importorskip("peft")
    model = make.peft_model(make.tiny_llama(), ["q_proj"], use_dora=True)
    model.save_pretrained(tmp_path)

    assert "DoRA" in refusal(tmp_path, UnsupportedAdapterError)
    carried = load_adapter(tmp_path, allow_unsupported=True)

    assert [key for key in carried.rest if "lora_magnitude_vector" in key] == list(carried.rest)
    assert len(carried.rest) == len(carried.layer_names) == 2


def test_dora_that_the_config_does_not_own_up_to(tmp_path):
    key = A.replace("lora_A.weight", "lora_magnitude_vector")
    path = make.write(tmp_path, tensors(**{key: torch.ones(36)}))

    assert f"found: tensor {key}" in refusal(path, UnsupportedAdapterError)


def test_what_is_no_product_is_never_taken_for_one(tmp_path):
    pytest.importorskip("peft")
    path = make.write(tmp_path, settings=make.config(target_parameters=["mlp.experts.up"]))

    carried = load_adapter(path, allow_unsupported=True)

    assert carried.layer_names == []
    assert carried.rest.keys() == make.factors().keys()


# --- files that are not what they claim ---------------------------------------------------------


def test_git_lfs_pointer(tmp_path):
    make.write(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    (tmp_path / SAFETENSORS).write_text(pointer)

    text = refusal(tmp_path, CorruptFileError)

    assert "Git LFS pointer" in text
    assert "git lfs pull" in text
    (tmp_path / SAFETENSORS).unlink()
    (tmp_path / "adapter_model.bin").write_text(pointer)
    with pytest.raises(CorruptFileError, match="Git LFS pointer"):
        open_adapter(tmp_path)


def test_truncated_and_altered_safetensors(tmp_path):
    make.write(tmp_path)
    whole = (tmp_path / SAFETENSORS).read_bytes()

    (tmp_path / SAFETENSORS).write_bytes(whole[:-10])
    truncated = refusal(tmp_path, CorruptFileError)
    (tmp_path / SAFETENSORS).write_bytes(b"\xff" * 8 + whole[8:])
    altered = refusal(tmp_path, CorruptFileError)
    (tmp_path / SAFETENSORS).write_bytes(b"")
    empty = refusal(tmp_path, CorruptFileError)

    assert "The file is truncated" in truncated
    assert f"expected: {len(whole)} bytes" in truncated
    assert f"found: {len(whole) - 10} bytes" in truncated
    assert "not a sound safetensors file" in altered
    assert "at least 8 bytes" in empty


class Evil:
    def __reduce__(self):
        return (os.system, ("touch /tmp/vlora-was-here",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickles_that_are_more_than_tensors_are_not_run(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    make.write(tmp_path, pickle=True)
    torch.save({A: Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError) as caught:
        open_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AdapterError):
        open_adapter(tmp_path)

    assert ran == []
    assert "more than tensors, and is not opened" in str(caught.value)
    assert "weights_only=True" in str(caught.value)
    assert "save_file" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([torch.zeros(2)], "list"),
        ({"model": {"x": torch.zeros(2)}}, "dict under 'model'"),
        ({3: torch.zeros(2)}, "dict"),
        ({A: 1.5}, "float under"),
        ({A: torch.zeros(2, 2).to_sparse()}, "sparse"),
        ({A: torch.zeros(1).expand(2**20, 2**20)}, "shape (1048576, 1048576)"),
        ({A: torch.zeros(2, 2, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_pickles_of_something_else(value, found, tmp_path):
    make.write(tmp_path, pickle=True)
    torch.save(value, tmp_path / "adapter_model.bin")

    with pytest.raises(AdapterError) as caught:
        open_adapter(tmp_path)

    assert str(tmp_path / "adapter_model.bin") in str(caught.value)
    assert found in str(caught.value)


def test_truncated_pickle(tmp_path):
    make.write(tmp_path, pickle=True)
    path = tmp_path / "adapter_model.bin"
    whole = path.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(AdapterError) as caught:
            open_adapter(tmp_path)
        assert str(path) in str(caught.value)


# --- places -------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [open_adapter, scan])
@pytest.mark.parametrize(
    ("place", "kind", "text"),
    [
        ("hf://org/name@main", HubOfflineError, "HF_HUB_OFFLINE"),
        ("hf://org", ParameterError, "hf://org/name"),
        ("s3://bucket/a", ParameterError, "mount it, or run vlora-tui there"),
        ("me@box:/runs/a", ParameterError, "mount it, or run vlora-tui there"),
        ("org/name", NotFoundError, "hf://org/name"),
        ("/no/such/place", NotFoundError, "check the spelling"),
        ("", ParameterError, "cannot be empty"),
        ("a\0b", ParameterError, "NUL"),
        ("x" * 5000, NotFoundError, "There is no such file"),
        ("~nobody-here/a", NotFoundError, "There is no such file"),
    ],
)
def test_places_that_are_not_here(look, place, kind, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(kind) as caught:
        look(place)

    assert text in str(caught.value)


@pytest.mark.parametrize("look", [open_adapter, scan])
def test_empty_and_wrong_folders(look, tmp_path):
    with pytest.raises(NotFoundError, match="The directory is empty"):
        look(tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(NotFoundError, match=r"(?s)no adapter here.*save_pretrained"):
        look(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFoundError, match="leads nowhere"):
        look(tmp_path / "loop")
    make.write(tmp_path / "legal")
    with pytest.raises(NotFoundError, match=r"did you mean .*legal"):
        look(tmp_path / "legla")


def test_a_subspace_is_not_one_adapter(tmp_path):
    (tmp_path / "subspace.json").write_text('{"format": "vlora-subspace", "version": 1}')

    with pytest.raises(ParameterError, match=r"(?s)a subspace, not one adapter.*:TASK"):
        open_adapter(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path):
    if os.geteuid() == 0:
        # root reads everything; a directory in the place of a file fails for anyone
        make.write(tmp_path)
        (tmp_path / SAFETENSORS).unlink()
        (tmp_path / SAFETENSORS).mkdir()
        with pytest.raises(VLoRAError, match="a directory"):
            open_adapter(tmp_path)
        return
    tmp_path.chmod(0)
    try:
        with pytest.raises(VLoRAError, match="cannot be read"):
            open_adapter(tmp_path)
    finally:
        tmp_path.chmod(0o700)


# --- anything at all ----------------------------------------------------------------------------


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_anywhere_raises_nothing_but_our_own_errors(data, tmp_path):
    make.write(tmp_path)
    name = data.draw(st.sampled_from([SAFETENSORS, CONFIG]))
    raw = bytearray((tmp_path / name).read_bytes())
    header_bytes = 8 + int.from_bytes(raw[:8], "little") if name == SAFETENSORS else len(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(header_bytes, len(raw)) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    (tmp_path / name).write_bytes(raw)

    try:
        adapter = load_adapter(tmp_path)
    except VLoRAError as error:
        str(error)
    else:
        assert 2 * len(adapter.layer_names) + len(adapter.rest) <= len(make.factors())
    scan(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(field=st.sampled_from(sorted(make.config())), value=JSON)
def test_any_json_in_any_field_raises_nothing_but_our_own_errors(field, value, tmp_path):
    make.write(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**make.config(), field: value}))

    try:
        adapter = load_adapter(tmp_path)
    except VLoRAError:
        return
    assert all(scale == scale for scale in adapter.scales.values())
    json.dumps(scan(tmp_path).as_dict(), allow_nan=False)
