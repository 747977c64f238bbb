"""Safetensors files against the library of that name, and against damage."""

from __future__ import annotations

import json
import os
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlora_engine.errors import (
    CorruptFileError,
    FileKindError,
    NotFoundError,
    StorageError,
    VLoRAError,
)
from vlora_engine.utils import safetensors_file
from vlora_engine.utils.safetensors_file import (
    FilePool,
    dtype_name,
    read_bytes,
    read_elements,
    read_header,
    read_tensor,
    torch_dtype,
)
from vlora_engine.utils.tensor_writer import TensorWriter, encode_header, write_tensors

DTYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3"]


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def sample(name: str, *shape: int) -> torch.Tensor:
    raw = torch.arange(1, 1 + torch.Size(shape).numel()) % 2
    return raw.reshape(shape).to(torch_dtype(name))


@pytest.fixture
def tensors():
    table = {f"t.{name}": sample(name, 3, 4) for name in DTYPES}
    return {**table, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7)}


def test_we_read_what_safetensors_writes(tensors, tmp_path):
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})

    header = read_header(tmp_path / "x")

    assert header.metadata == {"format": "pt"}
    assert header.entries.keys() == tensors.keys()
    assert header.file_bytes == (tmp_path / "x").stat().st_size
    for name, tensor in tensors.items():
        read = read_tensor(header, name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert bits(read) == bits(tensor)


def test_safetensors_reads_what_we_write(tensors, tmp_path):
    import hashlib

    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    digest = write_tensors(tmp_path / "x", ordered, {"format": "pt", "a": "ü"})

    read = load_file(tmp_path / "x")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name].float(), tensors[name].float()) for name in tensors)
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt", "a": "ü"}
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


def test_golden_bytes(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.tensor([[1.0, -2.0]])}, {"k": "v"})

    header = b'{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + bytes.fromhex("0000803f000000c0")
    assert (tmp_path / "x").read_bytes() == expected


def test_elements_of_the_middle(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.arange(10.0), "b": torch.arange(5.0)})
    header = read_header(tmp_path / "x")

    assert read_elements(header, "b", 1, 3).tolist() == [1, 2, 3]
    assert read_elements(header, "a", 10, 0).shape == (0,)
    assert bytes(read_bytes(header, "b")) == torch.arange(5.0).numpy().tobytes()
    for first, count in ((8, 3), (-1, 2)):
        with pytest.raises(CorruptFileError, match="is shorter than the index"):
            read_elements(header, "a", first, count)


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ([], "list"),
        ({"a": 3}, "int"),
        ({"a": entry(dtype="F31")}, "'F31'"),
        ({"a": entry(dtype=["F32"])}, "F32"),
        ({"a": entry(shape=[-2])}, "[-2]"),
        ({"a": entry(shape=[2.0])}, "[2.0]"),
        ({"a": entry(shape=[True, 2])}, "[True, 2]"),
        ({"a": entry(shape=[2**40, 2**40])}, "8 bytes"),
        ({"a": entry(data_offsets=[0, 8, 9])}, "[0, 8, 9]"),
        ({"a": entry(data_offsets=[4, 12])}, "offset"),
        ({"a": entry(), "b": entry()}, "'b' at offset"),
        ({"a": entry(), "__metadata__": [1]}, "list"),
    ],
)
def test_headers_that_lie(table, found, tmp_path):
    raw = json.dumps(table).encode()
    (tmp_path / "x").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(8))

    with pytest.raises(CorruptFileError) as caught:
        read_header(tmp_path / "x")

    assert found in str(caught.value)
    assert caught.value.remedy == "download or copy it again"


@pytest.mark.parametrize("length", [3, 2**63, 2**64 - 1, 200_000_000])
def test_a_header_length_is_not_trusted(length, tmp_path):
    (tmp_path / "x").write_bytes(length.to_bytes(8, "little") + b"{}")

    with pytest.raises(CorruptFileError, match=f"a header length of {length} bytes"):
        read_header(tmp_path / "x")


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_file_is_as_long_as_its_header_says(extra, tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(4)})
    raw = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(raw[:-1] if extra < 0 else raw + b"\0")

    word = "truncated" if extra < 0 else "longer than its header says"
    with pytest.raises(CorruptFileError, match=f"The file is {word}"):
        read_header(tmp_path / "x")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(data, tmp_path):
    raw, size = encode_header([("a", "F32", (2, 2)), ("b", "I8", (3,))], {"k": "v"})
    raw = bytearray(raw.ljust(size, b"\0"))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw
    (tmp_path / "x").write_bytes(raw)

    try:
        header = read_header(tmp_path / "x")
        for name in header.entries:
            read_tensor(header, name)
    except VLoRAError:
        return


def test_a_file_cut_after_its_header_was_read(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(1000)})
    header = read_header(tmp_path / "x")
    read_elements(header, "a", 0, 1)  # from here on the file is open
    with (tmp_path / "x").open("r+b") as file:
        file.truncate(500)

    with pytest.raises(CorruptFileError, match="became shorter while it was read"):
        read_tensor(header, "a")


def test_what_is_not_there_or_not_a_file(tmp_path):
    with pytest.raises(NotFoundError):
        read_header(tmp_path / "none")
    with pytest.raises(FileKindError, match="a directory"):
        read_header(tmp_path)


def test_a_replaced_file_is_read_anew(tmp_path):
    for value in (1.0, 2.0):
        write_tensors(tmp_path / "new", {"a": torch.full((3,), value)})
        (tmp_path / "new").rename(tmp_path / "x")
        assert read_tensor(read_header(tmp_path / "x"), "a").tolist() == [value] * 3


def test_few_files_are_open_at_once_whatever_the_threads(tmp_path):
    pool = FilePool(limit=3)
    for i in range(10):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 100)
    wrong = []

    def work(seed):
        for step in range(50):
            i = (seed + step * 7) % 10
            buffer = bytearray(10)
            pool.pread_into(tmp_path / str(i), memoryview(buffer), 20)
            if buffer != bytes([i]) * 10 or len(pool._files) > 3:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_files_that_come_round_and_round_mostly_stay_open(tmp_path, monkeypatch):
    """Of a collection read layer by layer, that is a little larger than the pool."""
    opened = []
    plain = safetensors_file.open_descriptor
    monkeypatch.setattr(
        safetensors_file, "open_descriptor", lambda path: opened.append(path) or plain(path)
    )
    pool, files, layers = FilePool(limit=50), 60, 20
    for i in range(files):
        (tmp_path / str(i)).write_bytes(b"0123")
    for _ in range(layers):
        for i in range(files):
            pool.pread_into(tmp_path / str(i), memoryview(bytearray(4)), 0)
    assert len(opened) < files * layers / 2
    pool.forget_below(tmp_path)


def test_a_file_forgotten_while_it_is_read_is_closed_by_its_reader(tmp_path, monkeypatch):
    pool, file, buffer = FilePool(), tmp_path / "x", bytearray(4)
    file.write_bytes(b"0123")
    plain, used = os.preadv, []

    def read(descriptor, *rest):
        pool.forget(file)
        used.append(descriptor)
        return plain(descriptor, *rest)

    monkeypatch.setattr(os, "preadv", read)
    pool.pread_into(file, memoryview(buffer), 0)
    assert bytes(buffer) == b"0123"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(used[0])


def test_a_writer_that_was_given_too_little_says_so(tmp_path):
    with (
        pytest.raises(StorageError, match="not written completely"),
        TensorWriter(tmp_path / "x", [("a", "F32", (4,))]) as writer,
    ):
        writer.write(torch.zeros(3))


def test_every_dtype_has_both_names():
    assert [dtype_name(torch_dtype(name)) for name in DTYPES] == DTYPES


def test_equal_headers_are_parsed_once_and_each_file_is_held_against_its_own_size(tmp_path):
    for name in "abc":
        save_file({"t": torch.full((3,), float(ord(name)))}, tmp_path / name)
    first, second = read_header(tmp_path / "a"), read_header(tmp_path / "b")

    assert second.entries is first.entries
    assert (first.path, second.path) == (tmp_path / "a", tmp_path / "b")
    assert read_tensor(second, "t").tolist() == [float(ord("b"))] * 3
    cut = (tmp_path / "c").read_bytes()[:-4]
    (tmp_path / "c").write_bytes(cut)
    with pytest.raises(CorruptFileError, match="truncated") as refused:
        read_header(tmp_path / "c")
    assert refused.value.where == tmp_path / "c" or str(tmp_path / "c") in str(refused.value)
