"""The names params.yaml may use, a line each.

A compression method ``name`` lives in ``hemorrhage/compress/methods/<family>/name.py``, a decoding strategy in
``hemorrhage/decode/strategies/name.py``. Adding one is its file and its line here; the module of this registry
is part of no address, so that a new line invalidates nothing.
"""

METHODS = (
    # Weight quantization
    "rtn",
    "hqq",
    "gptq",
    "awq",
    "autoround",
    "qat",
    "rotation",
    "mixed",
    "codebook",
    "gguf_types",
    # Activation quantization
    "activations",
    "kv_cache",
    "llm_int8",
    # Equivalent transforms
    "smoothing",
    "hadamard",
    # Cache eviction
    "eviction",
    # Unstructured pruning
    "magnitude",
    "wanda",
    "sparsegpt",
    "owl",
    "gblm",
    "wanda_plus",
    "ria",
    "dsnot",
    "admm",
    "gradual",
    "proximal",
    # Structured pruning
    "width",
    "slicegpt",
    "group_lasso",
    "flap",
    # Depth pruning
    "depth",
    # Low rank
    "svd",
    "asvd",
    # Depth expansion
    "llama_pro",
    "depth_up_scaling",
    "duplication",
    # Mixtures of experts
    "upcycling",
    "expert_split",
    "expert_pruning",
    "routing",
    # Perturbation
    "noise",
    # Published by others
    "external",
    # Recovery
    "recovery",
)
"""Compression methods. What is known of one is in its file: hemorrhage.compress.method."""

STRATEGIES = (
    "as_shipped",
    "sample",
    "greedy",
    "beam",
    "diverse_beam",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical",
    "eta",
    "epsilon",
    "mirostat",
    "contrastive_search",
    "contrastive_decoding",
    "dola",
    "fsd",
    "fsd_d",
    "assisted",
)
"""Decoding strategies."""

EMBEDDED_CORPORA = ("prose", "code", "humaneval")
"""Corpora every machine has: hemorrhage/data/texts/embedded.py makes them without a network."""

REPOSITORY_CORPORA = ("wikitext2", "ptb", "c4", "mbpp", "gsm8k", "wikinews")
"""Corpora of data.source mirror and hub: hemorrhage/data/texts/repositories.py says where each lies."""

HARNESS_TASKS = (
    "arc_easy",
    "arc_challenge",
    "mmlu",
    "hellaswag",
    "piqa",
    "winogrande",
    "boolq",
    "openbookqa",
    "lambada_openai",
    "gsm8k",
)
"""Tasks of lm-eval: hemorrhage/data/benchmarks/catalogue.py says where their data lie."""

CODE_TASKS = ("humaneval", "mbpp")
"""Tasks whose answers are programs: hemorrhage/data/benchmarks/code_tasks.py."""

WORKED_TASKS = {"gsm8k_worked": "gsm8k"}
"""Tasks that the decoding sweep answers with worked solutions -> the task of lm-eval that has the same data.

They have names of their own: a chat model is asked in the bench's words, and the flexible filter's answer counts."""

OPEN_ENDED_TASKS = ("xsum", "mt_bench")
"""Tasks without right answers other than the corpora: hemorrhage/data/benchmarks/instructions.py."""

TASKS = ("agreement", "arithmetic", "recall", "cloze")
"""Multiple-choice probe tasks that hemorrhage/data/tasks/probes.py generates from templates and a seed."""
