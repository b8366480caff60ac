"""Ray through its client (``ray://``): the driver is on no machine of the cluster."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ray.train._internal import storage
from ray.util.client import ray as client

from mixnas.cluster.crew import Crew
from mixnas.cluster.local import having


@contextmanager
def driven_here(crew: Crew, folder: Path) -> Iterator[None]:
    """Keep Tune's loop in this process where Ray is reached through its client.

    Tune would send the loop to the cluster, away from the search, its log and whoever listens. The
    loop needs nothing there: calls, actors and objects all go through the client. Tune's only
    other need is Ray's session folder, for what it stages; it gets a scratch folder.
    """
    with ExitStack() as stack:
        if crew.afar:
            stack.enter_context(having(client, "is_connected", lambda: False))
            session = str(folder / "session")
            stack.enter_context(having(storage, "_get_ray_train_session_dir", lambda: session))
        yield
