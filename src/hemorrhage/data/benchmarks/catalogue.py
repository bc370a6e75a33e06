"""The tasks of lm-eval that the bench can run: their definitions, metrics and data.

The step and the plan import this module at run time. The address of a prepared task holds its own entry (``identity``
of hemorrhage.data.benchmarks.harness), so that a new line here invalidates nothing.

The primary metric is the one that the Open LLM Leaderboard (first version) took from lm-eval: ``acc_norm`` for
ARC-Challenge and HellaSwag, ``acc`` for MMLU and WinoGrande, the strict exact match of GSM8K. For the tasks it did not
have, it is what papers on compression report from lm-eval: ``acc_norm`` where the choices are answers of unequal length
(ARC-Easy, OpenBookQA, PIQA), ``acc`` where they are single words (BoolQ) or nothing is chosen (LAMBADA). Shots are
those of lm-eval's definitions, which is 0 for MMLU where the leaderboard gave 5.
"""

from __future__ import annotations

from hemorrhage.data.benchmarks.entry import Benchmark, Repository

BENCHMARKS = {
    "arc_easy": Benchmark(
        definition="arc/arc_easy.yaml",
        metric="acc_norm,none",
        repositories=(Repository("allenai/ai2_arc", "ARC-Easy"),),
        split="test",
        columns=("question", "choices", "answerKey"),
        options="choices.text",
        right="answerKey",
        labels="choices.label",
    ),
    "arc_challenge": Benchmark(
        definition="arc/arc_challenge.yaml",
        metric="acc_norm,none",
        repositories=(Repository("allenai/ai2_arc", "ARC-Challenge"),),
        split="test",
        columns=("question", "choices", "answerKey"),
        options="choices.text",
        right="answerKey",
        labels="choices.label",
    ),
    "mmlu": Benchmark(
        definition="mmlu/default/_mmlu.yaml",
        metric="acc,none",
        repositories=(Repository("cais/mmlu", "all"),),
        split="test",
        columns=("question", "subject", "choices", "answer"),
        shots_split="dev",
        options="choices",
        right="answer",
        member="subject",
    ),
    "hellaswag": Benchmark(
        definition="hellaswag/hellaswag.yaml",
        metric="acc_norm,none",
        repositories=(Repository("Rowan/hellaswag", "default"),),
        split="validation",
        columns=("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        options="endings",
        right="label",
    ),
    # lm-eval reads a copy of the authors' repository, which has a script instead of files.
    "piqa": Benchmark(
        definition="piqa/piqa.yaml",
        metric="acc_norm,none",
        repositories=(Repository("baber/piqa", "default"), Repository("ybisk/piqa", "plain_text")),
        split="validation",
        columns=("goal", "sol1", "sol2", "label"),
        options=2,
        right="label",
    ),
    "winogrande": Benchmark(
        definition="winogrande/default.yaml",
        metric="acc,none",
        repositories=(Repository("allenai/winogrande", "winogrande_xl"),),
        split="validation",
        columns=("sentence", "option1", "option2", "answer"),
        options=2,
        right="answer",
        labels=("1", "2"),
    ),
    # lm-eval reads SuperGLUE's copy, whose passages begin with their titles; the authors' own have none.
    "boolq": Benchmark(
        definition="super_glue/boolq/default.yaml",
        metric="acc,none",
        repositories=(
            Repository("aps/super_glue", "boolq"),
            Repository("google/boolq", "default", (("answer", "label"),)),
        ),
        split="validation",
        columns=("passage", "question", "label"),
        options=2,
        right="label",
    ),
    "openbookqa": Benchmark(
        definition="openbookqa/openbookqa.yaml",
        metric="acc_norm,none",
        repositories=(Repository("allenai/openbookqa", "main"),),
        split="test",
        columns=("question_stem", "choices", "answerKey"),
        options="choices.text",
        right="answerKey",
        labels="choices.label",
    ),
    "lambada_openai": Benchmark(
        definition="lambada/lambada_openai.yaml",
        metric="acc,none",
        repositories=(Repository("EleutherAI/lambada_openai", "default"),),
        split="test",
        columns=("text",),
    ),
    "gsm8k": Benchmark(
        definition="gsm8k/gsm8k.yaml",
        metric="exact_match,strict-match",
        repositories=(Repository("openai/gsm8k", "main"),),
        split="test",
        columns=("question", "answer"),
        shots=5,
        shots_split="train",
    ),
}
"""Task -> its definition, metric and data. Licences are the data sets' own."""
