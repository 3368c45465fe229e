"""Writing checkpoints and the model, with signs of life while that takes long."""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debzero.base.errors import UserError
from debzero.base.files import new_folder, write_json
from debzero.model.publish import as_published, inputs_of
from debzero.run import checkpoint
from debzero.run.folder import MODEL_FACTS
from debzero.train import exchange
from debzero.train.meter import Meter
from debzero.train.setup import Setup


class Saver:
    """Writes the run's checkpoints, and knows when the next one is due."""

    def __init__(self, setup: Setup, meter: Meter) -> None:
        self.setup, self.context, self.meter = setup, setup.context, meter
        self.saved_at, self.saved_step = time.monotonic(), setup.state.step

    def due(self) -> bool:
        """Whether the job wants a checkpoint of this step. One that is late is asked for once: the ranks hear of it a
        step later, when it must not be asked for again."""
        wanted = self.context.resolved.job.checkpoint
        late = time.monotonic() - self.saved_at > 60 * wanted.minutes
        if late:
            self.saved_at = time.monotonic()
        return late or bool(wanted.steps and self.setup.state.step % wanted.steps == 0)

    def save_if_possible(self) -> None:
        """A checkpoint during the run: where there is no room for it the run warns, continues and tries again later."""
        try:
            self.context.agree(lambda: checkpoint.check_room(self.context.folder.checkpoints))
        except UserError as error:
            self.saved_at = time.monotonic()
            self.context.progress.warn(str(error))
            return
        self.save()

    def save(self) -> None:
        self.meter.share_losses()
        root = self.context.folder.checkpoints
        contents = checkpoint.Contents(self.setup.engine, self.setup.identity, self.setup.state,
                                       self.context.leads)
        with self._watched(root):
            checkpoint.save(root, contents, self.context.resolved.job.checkpoint.keep, self.context.progress.alive)
        self.saved_at, self.saved_step = time.monotonic(), self.setup.state.step

    def save_model(self) -> None:
        """Write a folder that transformers' from_pretrained loads: safetensors, configuration and tokenizer."""
        engine, folder = self.setup.engine, self.context.folder
        weights = engine.weights()
        if self.context.leads:
            with self._watched(folder.folder), new_folder(folder.model, self.context.progress.alive) as temporary:
                job = self.context.resolved.job
                with as_published(engine.model, job.task):
                    engine.model.save_pretrained(temporary, state_dict=weights, safe_serialization=True)
                self.setup.samples.prepared.tokenizer.save_pretrained(temporary)
                write_json(temporary / MODEL_FACTS, {"step": self.setup.state.step, "inputs": inputs_of(job)})
        exchange.barrier()

    @contextmanager
    def _watched(self, folder: Path) -> Iterator[None]:
        """Writing may take long, also in libraries: as long as the folder's size changes, the run is alive."""
        done = threading.Event()

        def watch() -> None:
            before = -1
            while not done.wait(5):
                size = checkpoint.folder_bytes(folder)
                if size != before:
                    self.context.progress.alive()
                before = size

        if self.context.leads:
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()
