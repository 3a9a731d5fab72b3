"""The models the recipes know by a short name, and what must be known about a model before it is loaded.

Shapes are those of the published configurations. Parameter counts, LoRA counts and the memory of the weights
follow from them; the tests compare these with what Unsloth's notebooks and vLLM's logs print. Imports neither
torch nor transformers.
"""

from dataclasses import KW_ONLY, dataclass, replace

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a Llama-like decoder block, the usual LoRA targets."""

OPT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Every linear layer of an OPT decoder block."""

FUSED_PROJECTIONS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
"""The same in a `phi3` checkpoint, which stores q, k, v and gate, up as one matrix each."""

GIB = 2**30
NF4_BYTES_PER_WEIGHT = 0.516
"""4 bits, an 8-bit scale per 64 weights, a float32 per 256 scales (double quantisation: QLoRA, section 3)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder (RMSNorm, gated MLP, grouped-query attention), or of OPT's."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    _: KW_ONLY
    tied: bool = False
    """Whether the output head is the embeddings."""
    qkv_bias: bool = False
    """Qwen2."""
    qk_norm: bool = False
    """A norm over each head's queries and keys: Gemma 3, Qwen3."""
    norms_per_layer: int = 2
    """Gemma 3 has four: before and after each of attention and MLP."""
    positions: int = 0
    """Learned positions, which only OPT has. With them come a plain MLP, and a bias in every layer and norm."""

    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every projection of one layer, under its separate and its fused names."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "qkv_proj": (self.hidden, queries + 2 * keys),
            "o_proj": (queries, self.hidden),
            "out_proj": (queries, self.hidden),
            "fc1": (self.hidden, self.intermediate),
            "fc2": (self.intermediate, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    def linear_weights(self) -> int:
        """Weights in the projections of all layers: what 4-bit loading quantises (not the output head)."""
        linear = self.linear()
        names = OPT_PROJECTIONS if self.positions else PROJECTIONS
        return self.layers * sum(linear[name][0] * linear[name][1] for name in names)

    def other_weights(self) -> int:
        """Embeddings, output head, norms and biases: what stays in 16 bits."""
        norms = self.norms_per_layer * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        if self.positions:
            linear = self.linear()
            norms *= 2
            biases = sum(linear[name][1] for name in OPT_PROJECTIONS)
            embeddings += (self.positions + 1) * self.hidden  # + 1: the last norm's bias
        return embeddings + self.layers * (norms + biases) + self.hidden


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model: where its weights are, what its tokenizer needs mended, and its shape."""

    alias: str
    """Short name, safe as a folder name."""
    hub_id: str
    """The official repository, or the path of a local folder."""
    unsloth_4bit_id: str | None = None
    """Unsloth's upload of the same weights in NF4: a quarter of the download, and not gated."""
    revision: str | None = None
    """Commit to load from the hub. None, as everywhere in the table, is the default branch: no hub could be
    reached when the table was written, and a commit that nobody has loaded is worse than none."""
    context: int | None = None
    """Longest sequence in tokens the model was made for."""
    lora_targets: tuple[str, ...] = PROJECTIONS
    chat_template: str | None = None
    """A template to use instead of the tokenizer's own, where that one is wrong."""
    eos_token: str | None = None
    pad_token: str | None = None
    """Special tokens to set, where the tokenizer's own are wrong. So is a pad that equals eos: whoever masks
    padding out of the loss masks eos with it, and the model does not learn to stop."""
    fp16_unsafe: bool = False
    """Activations leave float16's range; use bfloat16, or float32 where there is none."""
    licence: str | None = None
    """Where it is followed by "gated", the official repository wants an account that has accepted its terms."""
    embedded: bool = False
    """The weights come from an installed package (`recipes.common.stand_ins.smollm2`) and not from a hub."""
    shape: Shape | None = None
    """None where only the hub knows it."""

    def parameter_count(self) -> int:
        """Parameters; tied embeddings count once."""
        shape = self._known_shape()
        return shape.linear_weights() + shape.other_weights()

    def lora_parameter_count(self, rank: int, targets: tuple[str, ...] | None = None) -> int:
        """Trainable parameters of a LoRA adapter: rank x (inputs + outputs) for every target in every layer.

        Raises:
            ValueError: a target is not a projection of the model.
        """
        shape, targets = self._known_shape(), targets or self.lora_targets
        linear = shape.linear()
        if unknown := sorted(set(targets) - set(linear)):
            raise ValueError(f"{self.alias} has no {', '.join(unknown)} for LoRA; it has {', '.join(linear)}")
        return shape.layers * sum(rank * sum(linear[name]) for name in targets)

    def weight_gib(self, load_in_4bit: bool) -> float:
        """GiB of the weights alone: bfloat16, or projections in NF4 (vLLM's logs show 0.02 to 0.3 more)."""
        shape = self._known_shape()
        linear_bytes = NF4_BYTES_PER_WEIGHT if load_in_4bit else 2
        return (shape.linear_weights() * linear_bytes + shape.other_weights() * 2) / GIB

    def kv_bytes_per_token(self) -> int:
        """Bytes one token takes in a 16-bit key-value cache (Gemma 3's sliding windows forget some of it)."""
        shape = self._known_shape()
        return 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim

    def _known_shape(self) -> Shape:
        if self.shape is None:
            raise ValueError(f"the shape of {self.alias} is unknown; only aliases and local folders have one")
        return self.shape


# ChatML with a separator. The template first published with Phi-4 opened an assistant turn whether or not one
# was asked for, so that training text ended in an empty second turn (unsloth.ai/blog/phi4).
PHI4_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}Human: {{ message['content'] }}{% else %}{{ message['content'] }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For models that were never taught to chat, OPT and Llama-3-8B, and have no template of their own. It writes only
tokens that pre-training has trained: the base model's vectors for its instruct sibling's headers and end of turn are
not, and a LoRA leaves the embeddings as they are. One bos begins a text and one eos ends each answer, as in
pre-training; OPT has only `</s>` for both, and an answer without it would never stop. No space after the last colon,
since a word's space belongs to its token."""

ZEPHYR_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '<|system|>\n' + eos_token + '\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""The text that Zephyr's SFT model was trained on (alignment-handbook), its empty system turn included. The published
template leaves `<s>` to the tokenizer, which adds none where a trainer tokenises through the template, as TRL does. It
also writes a newline after the last `</s>`, and TRL's ORPO and CPO a second `</s>` after that."""

# layers, hidden, heads, kv_heads, head_dim, intermediate, vocab
_PHI = Shape(40, 5120, 40, 10, 128, 17_920, 100_352)
_MISTRAL = Shape(32, 4096, 32, 8, 128, 14_336, 32_768)
_ZEPHYR = replace(_MISTRAL, vocab=32_000)
_LLAMA_3B = Shape(28, 3072, 24, 8, 128, 8192, 128_256, tied=True)
_LLAMA_8B = replace(_MISTRAL, vocab=128_256)
_QWEN = Shape(28, 1536, 12, 2, 128, 8960, 151_936, tied=True, qkv_bias=True)
_GEMMA = Shape(26, 1152, 4, 1, 256, 6912, 262_144, tied=True, qk_norm=True, norms_per_layer=4)
_OPT = Shape(24, 2048, 32, 32, 64, 8192, 50_272, tied=True, positions=2050)  # two more than the context
_SMOLLM = Shape(30, 576, 9, 3, 64, 1536, 49_152, tied=True)

MODELS = {
    spec.alias: spec
    for spec in (
        # Microsoft's checkpoint fuses q, k, v and gate, up. The targets name the separate matrices of
        # Unsloth's copy, which Unsloth also loads when it is given Microsoft's id.
        ModelSpec(
            alias="phi-4",
            hub_id="microsoft/phi-4",
            unsloth_4bit_id="unsloth/phi-4-unsloth-bnb-4bit",
            context=16_384,
            chat_template=PHI4_TEMPLATE,
            eos_token="<|im_end|>",
            pad_token="<|dummy_87|>",
            licence="MIT",
            shape=_PHI,
        ),
        ModelSpec(
            alias="mistral-7b",
            hub_id="mistralai/Mistral-7B-Instruct-v0.3",
            unsloth_4bit_id="unsloth/mistral-7b-instruct-v0.3-bnb-4bit",
            context=32_768,
            licence="Apache-2.0",  # gated
            shape=_MISTRAL,
        ),
        # Also in 16 bits as unsloth/zephyr-sft. The vocabulary has three special tokens and no other: `<unk>` pads,
        # as in Unsloth's copies, since no text holds one (what has no token of its own is spelled in bytes).
        ModelSpec(
            alias="zephyr-sft",
            hub_id="HuggingFaceH4/mistral-7b-sft-beta",
            unsloth_4bit_id="unsloth/zephyr-sft-bnb-4bit",
            context=32_768,
            chat_template=ZEPHYR_TEMPLATE,
            eos_token="</s>",
            pad_token="<unk>",
            licence="MIT",
            shape=_ZEPHYR,
        ),
        ModelSpec(
            alias="llama-3.2-3b",
            hub_id="meta-llama/Llama-3.2-3B-Instruct",
            unsloth_4bit_id="unsloth/Llama-3.2-3B-Instruct-unsloth-bnb-4bit",
            context=131_072,
            pad_token="<|finetune_right_pad_id|>",
            licence="Llama 3.2 Community",  # gated
            shape=_LLAMA_3B,
        ),
        ModelSpec(
            alias="llama-3.1-8b",
            hub_id="meta-llama/Llama-3.1-8B-Instruct",
            unsloth_4bit_id="unsloth/Llama-3.1-8B-Instruct-unsloth-bnb-4bit",
            context=131_072,
            pad_token="<|finetune_right_pad_id|>",
            licence="Llama 3.1 Community",  # gated
            shape=_LLAMA_8B,
        ),
        # The base model. Its end token ends a document in pre-training.
        ModelSpec(
            alias="llama-3-8b",
            hub_id="meta-llama/Meta-Llama-3-8B",
            unsloth_4bit_id="unsloth/llama-3-8b-bnb-4bit",
            context=8192,
            chat_template=BASE_TEMPLATE,
            eos_token="<|end_of_text|>",
            pad_token="<|reserved_special_token_250|>",
            licence="Llama 3 Community",  # gated
            shape=_LLAMA_8B,
        ),
        # Its template speaks a system prompt of its own where a chat has none.
        ModelSpec(
            alias="qwen2.5-1.5b",
            hub_id="Qwen/Qwen2.5-1.5B-Instruct",
            unsloth_4bit_id="unsloth/Qwen2.5-1.5B-Instruct-unsloth-bnb-4bit",
            context=32_768,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            licence="Apache-2.0",
            shape=_QWEN,
        ),
        ModelSpec(
            alias="gemma-3-1b",
            hub_id="google/gemma-3-1b-it",
            unsloth_4bit_id="unsloth/gemma-3-1b-it-unsloth-bnb-4bit",
            context=32_768,
            fp16_unsafe=True,
            licence="Gemma",  # gated
            shape=_GEMMA,
        ),
        ModelSpec(
            alias="opt-1.3b",
            hub_id="facebook/opt-1.3b",
            context=2048,
            lora_targets=OPT_PROJECTIONS,
            chat_template=BASE_TEMPLATE,
            eos_token="</s>",
            pad_token="<pad>",
            licence="OPT (no commercial use)",
            shape=_OPT,
        ),
        ModelSpec(
            alias="smollm2-135m",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            context=8192,
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            licence="Apache-2.0",
            embedded=True,
            shape=_SMOLLM,
        ),
    )
}


def default_alias(gpu: bool) -> str:
    """The model a recipe takes when none is named."""
    return "llama-3.2-3b" if gpu else "smollm2-135m"
