"""Peak resident memory of compressing: the embedded model, and a random Llama of 1.1 billion weights.

Each is compressed by GPTQ in a process of its own. The random folder (2 GB) is made in
the data home and removed again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from backend.artifacts import load_tokenizer
from backend.assets import EMBEDDED_MODEL
from backend.host import Host
from backend.pipeline import compress
from backend.progress import silent
from backend.recipe import parse_recipe
from backend.resident import peak_bytes


def random_llama(folder: Path, host: Host) -> None:
    """A Llama with the layout of TinyLlama, random bf16 weights, and the embedded model's tokenizer."""
    config = AutoConfig.for_model(
        "llama", hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True,
        dtype="bfloat16",
    )  # fmt: skip
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(tensor.shape, dtype=torch.bfloat16)
        if tensor.ndim == 1
        else (torch.randn(tensor.shape, generator=generator) * 0.02).bfloat16()
        for name, tensor in model.named_parameters()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    load_tokenizer(EMBEDDED_MODEL, host).save_pretrained(folder)


def measure(model: str, samples: int) -> None:
    """Compress and print the peak of this process as JSON."""
    host = Host.from_environment()
    recipe = parse_recipe(
        {
            "model": model,
            "stages": [{"method": "quantize.gptq", "params": {"bits": 3}}],
            "calibration": {"samples": samples, "length": 512},
        }
    )
    scratch = host.runs / "bench-memory"
    shutil.rmtree(scratch, ignore_errors=True)
    compress(recipe, host, scratch / "artifact.safetensors", scratch / "blocks", silent)
    shutil.rmtree(scratch)
    # Not getrusage: its maximum is inherited from the process that started this one.
    print(json.dumps({"peak": peak_bytes(torch.device("cpu"))}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    host = Host.from_environment()
    folder = host.home / "bench-llama-1.1b"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        random_llama(folder, host)
        weights = (folder / "model.safetensors").stat().st_size
        for name, model, samples, bound in (
            ("embedded", EMBEDDED_MODEL, 64, 2.5e9),
            ("1.1B Llama", str(folder), 16, weights + 3e9),
        ):
            command = [sys.executable, "-m", "bench.memory", "--measure", model, str(samples)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak = json.loads(out.splitlines()[-1])["peak"]
            print(f"{name}: peak {peak / 1e9:.2f} GB, bound {bound / 1e9:.2f} GB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
