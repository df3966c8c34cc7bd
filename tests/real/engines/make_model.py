"""Write a tiny random-weight Llama to a folder: make_model.py OUT   (Python of the virtual environment that install.sh made)

Tokenizer and chat template are those of filters/testdata; the weights are drawn from a seed, the same on every machine.
"""
import pathlib, shutil, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM

out = pathlib.Path(sys.argv[1])
data = pathlib.Path(__file__).resolve().parents[3] / "filters/testdata"
torch.manual_seed(7)
model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
    max_position_embeddings=8192, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True, torch_dtype="float32"))
model.save_pretrained(out, safe_serialization=True)
shutil.copy(data / "tiny_llama_config.json", out / "tokenizer_config.json")
# Copied last: its presence marks the folder as complete.
shutil.copy(data / "tiny_llama.json", out / "tokenizer.json")
