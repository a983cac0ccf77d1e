"""A rule on a model of one's own in Lightning: the groups go into ``configure_optimizers``.

python examples/with_lightning.py
"""

import lightning
import torch
from small_gpt import RESIDUAL, SmallGPT, make_batches, make_optimizer, make_warmup, set_weights
from torch.utils.data import DataLoader

from hptransfer.adopt import infer_roles


class Module(lightning.LightningModule):
    """The small GPT under its rule."""

    def __init__(self, width: int, *, base_width: int) -> None:
        super().__init__()
        self.base = infer_roles(SmallGPT, base_width=base_width, width=width, roles=RESIDUAL)
        self.losses = []
        self.model = SmallGPT(width)
        set_weights(self.model, self.base)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = self.model(batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict:
        """Return the rule's optimizer, and a warmup."""
        optimizer = make_optimizer(self.model, self.base)
        warmup = {"scheduler": make_warmup(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": warmup}


def train(width: int = 64, *, base_width: int = 32, steps: int = 20) -> list[float]:
    """Train some steps and return the losses."""
    module = Module(width, base_width=base_width)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(make_batches(steps), batch_size=None))
    return module.losses


if __name__ == "__main__":
    print([round(loss, 3) for loss in train()])
