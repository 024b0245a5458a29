"""Small byte-level Llamas, one expert per kind of text; trained here, on real text that comes with packages.

The texts are those of `language_texts`: Python sources, newswire, Slovenian comments. Out, in the cache: ``base/``,
trained for a while on all of them, a folder per expert, and ``<domain>.jsonl`` with passages of documents that no
model has seen. A token is a byte, so that models of a million parameters learn something.

    zoo = make_byte_llamas(LlamaRecipe())
    zoo.base, zoo.experts["code"], zoo.data["code"]
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.language_texts import ASSETS, DOMAINS, divide, fetch
from benchmarks.trained_zoo import TrainedZoo, train
from optmerge.atomic import atomic_directory, atomic_write
from optmerge.models.cache import cache_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TOKENS = 64  # bytes of a text; passages are longer, so that all examples have this length
HELD_OUT = 600  # passages a domain that no model is trained on
BYTES = 256
PAD = BYTES  # the one token that is no byte
VERSION = 1  # of the code that makes the zoo; raise it when the same recipe would give other files


@dataclass(frozen=True, slots=True)
class LlamaRecipe:
    """How base and experts are trained: AdamW with a linear decay, next-byte cross-entropy over random windows.

    Attributes:
        base_steps: Of the base, on all domains at once.
        steps: Of each expert, from the base, on its own domain.
        base_rate: First step size of the base.
        rate: First step size of an expert.
    """

    base_steps: int = 500
    steps: int = 150
    batch: int = 32
    base_rate: float = 2e-3
    rate: float = 5e-4
    hidden: int = 128
    layers: int = 4
    seed: int = 0


def make_byte_llamas(recipe: LlamaRecipe) -> TrainedZoo:
    """The zoo of a recipe in the cache, making what is missing."""
    archives = {domain.archive for domain in DOMAINS.values()}
    facts = [VERSION, sorted(ASSETS[name].sha256 for name in archives), HELD_OUT, TOKENS, asdict(recipe)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    zoo = TrainedZoo(cache_dir() / "time-to-quality" / f"llamas-{key}", tuple(DOMAINS))
    if zoo.complete():
        return zoo
    paths = fetch(cache_dir() / "language" / "assets", {name: ASSETS[name] for name in archives})
    streams: dict[str, Tensor] = {}
    for name, domain in DOMAINS.items():
        with zipfile.ZipFile(paths[domain.archive]) as archive:
            held, seen = divide(domain.read(archive), HELD_OUT)
        atomic_write(zoo.data[name], "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in held))
        streams[name] = torch.frombuffer(bytearray("\n".join(seen).encode()), dtype=torch.uint8).long()
    if not (zoo.base / "config.json").exists():
        _train(_new_model(recipe), list(streams.values()), zoo.base, recipe, "the base Llama", 0)
    for number, (name, stream) in enumerate(streams.items(), 1):
        if not (zoo.experts[name] / "config.json").exists():
            from transformers import LlamaForCausalLM

            model = LlamaForCausalLM.from_pretrained(zoo.base)
            _train(model, [stream], zoo.experts[name], recipe, f"the Llama for {name}", number)
    return zoo


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the bytes of the text, numbered as such.

    >>> byte_tokenizer()("aé")["input_ids"]
    [97, 195, 169]
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: index for index, letter in enumerate(_byte_letters())}
    tokenizer = Tokenizer(BPE(vocab={**vocabulary, "<pad>": PAD}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=TOKENS)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself where it can be printed, else one from 256 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(BYTES)]


def _new_model(recipe: LlamaRecipe) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=BYTES + 1,
        hidden_size=recipe.hidden,
        intermediate_size=2 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * TOKENS,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.default_generator.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def _train(
    model: LlamaForCausalLM,
    streams: list[Tensor],
    folder: Path,
    recipe: LlamaRecipe,
    title: str,
    number: int,
) -> None:
    """Train, and save whole or not at all; the windows are a function of seed and ``number``, 0 for the base."""
    generator = torch.Generator().manual_seed(1000 * recipe.seed + number)

    def loss() -> Tensor:
        windows = []
        for place in range(recipe.batch):
            stream = streams[place % len(streams)]
            begin = int(torch.randint(len(stream) - TOKENS, (), generator=generator))
            windows.append(stream[begin : begin + TOKENS])
        batch = torch.stack(windows)
        logits = model(input_ids=batch, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())

    steps, rate = (recipe.steps, recipe.rate) if number else (recipe.base_steps, recipe.base_rate)
    train(model, loss, steps=steps, learning_rate=rate, title=title)
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary)
        byte_tokenizer().save_pretrained(temporary)
