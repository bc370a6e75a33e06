"""Work of a job: what the cost model is fitted on and predicts from.

Work is counted, not measured: parameters that are read and written, and arithmetic in 10¹² floating-point operations
(a product of a token with a weight is two). hemorrhage.study.costs.model says how long that takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hemorrhage.study.design import Design

PROBE_TOKENS, HARNESS_TOKENS, PROGRAM_TOKENS = 6, 500, 400
"""Tokens that an item of a task costs, about: of a probe few, since items share what they begin with. Their price is
what is fitted."""

TOKEN_BYTES, QUESTION_TOKENS = 4, 100
"""Bytes of a file of questions for each token, and tokens of a question where some are drawn, about."""

CORRECTED_TEXTS = 24
"""Texts behind a prompt: 7 corrections and 10 controls by sampling, 7 of them greedily, too."""

SAMPLED_READINGS = 65
"""Readings of them: each is written, and read by the base; what was sampled is read by the variant and the base once
more, for the KL of its tokens."""


@dataclass(frozen=True)
class Work:
    """``parameters`` of the model in 10⁹; ``stored`` the same as written to disk, in 16-bit numbers; ``arithmetic``
    in 10¹² operations."""

    parameters: float
    stored: float
    arithmetic: float


@dataclass(frozen=True)
class Shape:
    """Parameters of a model: of its blocks, of a token's embedding table, and the width of its states.

    ``number``: of blocks.
    """

    blocks: int
    embedding: int
    width: int
    tied: bool
    number: int = 1

    @property
    def parameters(self) -> int:
        """Of everything that is stored."""
        return self.blocks + self.embedding * (1 if self.tied else 2)

    def forward(self, tokens: float) -> float:
        """Count the operations (10¹²) of reading so many tokens, logits included."""
        return 2e-12 * tokens * (self.blocks + self.embedding)


@dataclass(frozen=True)
class Load:
    """The load of a design's jobs: what they read and write, in tokens and parameters.

    ``evaluation_tokens``: corpus -> tokens of its evaluation split, for ``evaluate.windows: all``.
    """

    design: Design
    shape: Shape
    evaluation_tokens: Callable[[str], int]

    @property
    def calibration(self) -> int:
        """Tokens of the calibration set."""
        chosen = self.design.params.calibrate
        return chosen.samples * chosen.length

    def windows(self) -> float:
        """Count the tokens of all windows of an evaluation."""
        evaluate = self.design.params.evaluate
        if evaluate.windows != "all":
            return float(len(evaluate.corpora) * evaluate.windows * evaluate.window)
        return float(sum(map(self.evaluation_tokens, evaluate.corpora)))

    def screening(self) -> float:
        """Count the tokens of the windows of a screening."""
        evaluate = self.design.params.evaluate
        return float(len(evaluate.corpora) * self.design.params.screen.windows * evaluate.window)

    def confirmation(self) -> float:
        """Count the tokens of a confirmation."""
        evaluate, confirm = self.design.params.evaluate, self.design.params.screen.confirm
        windows = len(evaluate.corpora) * confirm.windows * evaluate.window
        return float(windows + len(evaluate.tasks) * confirm.items * PROBE_TOKENS)

    def evaluation(self, blocks: int) -> float:
        """Count the tokens that an evaluation reads, which leaves out ``blocks`` blocks one at a time."""
        evaluate, data = self.design.params.evaluate, self.design.params.data
        items = (len(evaluate.tasks) - len(evaluate.task_files)) * data.items * PROBE_TOKENS
        diagnosed = evaluate.diagnostics.windows * evaluate.diagnostics.window
        return self.windows() + items + self.questions() + diagnosed * 3 * blocks

    def questions(self) -> float:
        """Count the tokens of the user's files of questions, about."""
        files = self.design.params.evaluate.task_files.values()
        sizes = [(Path(task.file).stat().st_size / TOKEN_BYTES, task.items) for task in files]
        return sum(size if items == "all" else min(size, items * QUESTION_TOKENS) for size, items in sizes)

    def harness(self) -> float:
        """Count the tokens that lm-eval's tasks read."""
        chosen = self.design.params.evaluate.harness
        items = 1000 if chosen.items == "all" else chosen.items
        return float(len(chosen.tasks) * items * HARNESS_TOKENS)

    def code_tasks(self) -> float:
        """Count the tokens that the code tasks read and generate."""
        chosen = self.design.params.evaluate.code_tasks
        items = 1000 if chosen.items == "all" else chosen.items
        return float(len(chosen.tasks) * items * (PROGRAM_TOKENS + chosen.new_tokens))

    def generation(self) -> float:
        """Count the tokens that a decoding sweep generates, each as often as its strategy computes it."""
        decode = self.design.params.decode
        tokens = sum(entry.items * entry.new_tokens for entry in decode.closed_ended)
        tokens += sum(entry.items * ((entry.prefix or 0) + entry.new_tokens) for entry in decode.open_ended)
        times = 0
        for strategy in self.design.strategies.values():
            looks_ahead = strategy.strategy.startswith(("contrastive_s", "fsd"))
            once = strategy.number("beams", strategy.number("k", 0) + 1 if looks_ahead else 1)
            times += once * (decode.draws if strategy.samples else 1)
        return float(times * tokens)

    def correction(self) -> float:
        """Count the tokens that a job of corrections reads and generates."""
        params = self.design.params
        generated, corpora = params.mitigate.open_ended, len(params.evaluate.corpora)
        written = corpora * generated.items * (generated.prefix + generated.new_tokens)
        answers = sum(entry.items * entry.new_tokens for entry in params.decode.closed_ended)
        return self.windows() + SAMPLED_READINGS * written + CORRECTED_TEXTS * answers

    def alteration(self, variant: str) -> float:
        """Count the operations (10¹²) of a method: solving with second moments, passes over the calibration set, and
        training."""
        chosen = self.design.variants[variant]
        settings, shape = chosen.settings, self.shape
        total = 2e-12 * shape.blocks * shape.width if "hessian" in settings.statistics else 0.0
        streams = settings.propagates or chosen.on is not None
        if "tokens" in settings.statistics or (streams and settings.statistics):
            total += 2 * shape.forward(self.calibration)
        # Backwards takes twice the products of forwards.
        trained = settings.trained_windows * self.design.params.calibrate.length
        return total + 3 * shape.forward(trained)

    def exported(self, model: str) -> float:
        """Return the size of a model as an engine is given it, in 10⁹ numbers of 16 bits."""
        return self.stored(model) if model in self.design.variants else 1e-9 * self.shape.parameters

    def stored(self, variant: str) -> float:
        """Return the size of a variant's weights as stored, in 10⁹ numbers of 16 bits."""
        bits, shape = self.design.variants[variant].settings.code_bits, self.shape
        share = 1.0 if bits is None else min(bits, 16) / 16
        return 1e-9 * (shape.blocks * share + (shape.parameters - shape.blocks))
