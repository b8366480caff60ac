"""Train a supernet: sandwich rule, in-place distillation, a guard, a checkpoint at any step.

One step sees one batch. The dearest draw learns from the labels; the others learn from the
dearest one's probabilities (`mixnas.train.distil`). All of it is a pure function of the seed and
the step, so a resumed training goes on bit for bit (on one CPU process).

Several processes share each batch: every one draws the same architectures and answers its own
images, the gradients are averaged once all draws have gone backward (before each is projected, if
conflicting ones are), and all decide alike on the means of their losses. Batch norms see a
process's own images; their running statistics differ a little from one process to another, and
those of the first are kept: whoever judges an architecture estimates them anew.

What AdamW does to weights that a step did not draw: a tensor of which no corner was drawn has no
gradient and is left alone, neither moved nor decayed. Of a tensor that was drawn in part, the
rest has a zero gradient, so its momentum fades and its decay goes on; the dearest draw makes
that rest small.
"""

import math
from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from mixnas.arch import Architecture
from mixnas.errors import TrainingDiverged
from mixnas.network import Network
from mixnas.train.conflict import Projection, still
from mixnas.train.distil import Lesson
from mixnas.train.draws import Draw, Draws, tally
from mixnas.train.optimise import (
    Batch,
    Descent,
    Guard,
    State,
    StepResult,
    placed,
    precise,
    precision,
)
from mixnas.train.recipe import Recipe
from mixnas.train.world import World


class SupernetTrainer:
    """Trains a supernet by steps; `state` and `restore` carry it over a kill.

    Args:
        network: the supernet, on its device.
        draws: the architectures of every step.
        recipe: how to train.
        world: the processes that share each batch; alone by default.
    """

    def __init__(
        self, network: Network, draws: Draws, recipe: Recipe, world: World | None = None
    ) -> None:
        self.world = world or World.alone(next(network.parameters()).device)
        self.world.share(network)
        self.network = network.train()
        self.draws = draws
        self.recipe = recipe
        self.step = 0
        self.tally: Counter[str] = Counter()
        self.device = next(network.parameters()).device
        self.descent = Descent(network, recipe)
        self.guard = Guard(recipe.patience)
        self.lesson = Lesson(recipe)
        self.projection = Projection(network, recipe.projection)
        self.ema = ModelEmaV3(network, decay=recipe.ema, use_warmup=True, warmup_power=0.75)

    def run(self, batches: Iterator[Batch], until: int | None = None) -> Iterator[StepResult]:
        """Train step after step and yield what each tells.

        Args:
            batches: the stream of training batches from the current step on.
            until: the step to stop before; the recipe's last by default.

        Raises:
            TrainingDiverged: when the loss stays non-finite or exploded for the recipe's
                patience; the message names the architecture.
        """
        until = self.recipe.steps if until is None else until
        while self.step < until:
            yield self.train(*next(batches))

    def train(self, images: Tensor, labels: Tensor) -> StepResult:
        """Perform one step on one batch of images ``(B, C, H, W)`` and labels ``(B,)``.

        Of several processes each gives its own part of the batch, and all get the same result.
        """
        images, labels = placed((images, labels), self.device)
        result = StepResult(self.step, self.descent.rate)
        self.descent.clear()
        self.projection.clear()
        targets: Tensor | None = None
        counts: Counter[str] = Counter()
        for offered in self.draws.at(self.step):
            draw = self._attended(offered, images, labels)
            logits = self._answer(images, draw.arch)
            loss = self.lesson(logits, labels, targets)
            said = self.world.mean(loss.item())
            if reason := self.guard.trouble(said, self.network.num_classes):
                return self._skip(result, draw, reason)
            loss.backward()
            if self.projection.kind != "none":
                self._average()
            self.projection.take(draw.role)
            if targets is None:
                targets = logits.detach().softmax(dim=1)
                right = (logits.argmax(1) == labels).float().mean().item()
                result.accuracy = self.world.mean(right)
            result.losses[draw.role] = result.losses.get(draw.role, 0.0) + said
            counts[draw.role] += 1
            tally(self.tally, draw.arch)
        if self.projection.kind == "none":
            self._average()
        self.projection.finish()
        result.losses = {role: loss / counts[role] for role, loss in result.losses.items()}
        return self._finish(result)

    def _average(self) -> None:
        """Make the gradients the means over all processes; of the same parameters in each."""
        self.world.average([p.grad for p in self.network.parameters() if p.grad is not None])

    def _answer(self, images: Tensor, arch: Architecture) -> Tensor:
        """Return the logits ``(B, classes)`` of an architecture, in float32 or better."""
        with precision(self.device):
            return precise(self.network(images, arch))

    @torch.no_grad()
    def _attended(self, draw: Draw, images: Tensor, labels: Tensor) -> Draw:
        """Choose among a draw's candidates by their loss on the batch; the first of equals."""
        if not draw.others:
            return draw
        archs = (draw.arch, *draw.others)
        with still(self.network):
            losses = [F.cross_entropy(self._answer(images, arch), labels) for arch in archs]
        means = torch.tensor(self.world.means([loss.item() for loss in losses]))
        finite = means.nan_to_num(math.inf)
        place = finite.argmin() if self.recipe.attention == "best" else finite.argmax()
        return Draw(draw.role, archs[int(place)])

    def _skip(self, result: StepResult, draw: Draw, reason: str) -> StepResult:
        """Leave the weights as they are; stop when it goes on."""
        result.skipped = f"step {self.step}: {draw.role} architecture {draw.arch.id} gave {reason}"
        if self.guard.failed():
            raise TrainingDiverged(
                f"{result.skipped}, {self.guard.bad} steps in a row; lower the learning rate, or "
                f"look at that architecture: {draw.arch.to_json()}"
            )
        self.descent.clear()
        self._advance()
        return result

    def _finish(self, result: StepResult) -> StepResult:
        """Clip, check the gradient, step, average."""
        norm = self.descent.clip()
        if not math.isfinite(norm):
            return self._skip(result, next(self.draws.at(self.step)), f"a gradient of {norm}")
        self.guard.passed(result.losses["dearest"])
        self.descent.move()
        self._advance()
        return result

    def _advance(self) -> None:
        self.step += 1
        self.descent.turn(self.step)
        self.ema.update(self.network, step=self.step)

    def state(self) -> State:
        """Return everything that the next step depends on, as tensors and plain numbers."""
        return {
            "step": self.step,
            "bad": self.guard.bad,
            "usual": self.guard.usual,
            "tally": dict(self.tally),
            "network": self.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.descent.optimizer.state_dict(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.step, self.guard.bad, self.guard.usual = state["step"], state["bad"], state["usual"]
        self.tally = Counter(state["tally"])
        self.network.load_state_dict(state["network"])
        self.ema.module.load_state_dict(state["ema"])
        self.descent.optimizer.load_state_dict(state["optimizer"])
        self.descent.turn(self.step)


def weights(trainer: SupernetTrainer) -> dict[str, Tensor]:
    """Return the averaged weights, on the CPU, ready for safetensors."""
    module: Network = trainer.ema.module
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
