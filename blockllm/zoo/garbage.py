"""Deleting what no model needs. Rows go first: a kill in between leaves files, never holes."""

from __future__ import annotations

from blockllm.zoo.catalog import Catalog
from blockllm.zoo.folder import Folder, remove
from blockllm.zoo.reports import GcReport
from blockllm.zoo.soundness import check_models, check_packs

NEEDED_TENSORS = "SELECT tensor FROM layer_tensor UNION SELECT tensor FROM target_tensor"


def collect(folder: Folder, catalog: Catalog) -> GcReport:
    """Remove unneeded files and rows under the zoo's write lock. A pack stays whole while one of
    its tensors is needed.

    Raises CorruptStore, and then nothing was removed, when the catalogue is damaged: what it does
    not name any more may still be needed.
    """
    with catalog.writing() as connection:
        check_models(connection)
        dropped = connection.execute(
            "DELETE FROM tensor WHERE pack NOT IN"
            f" (SELECT pack FROM tensor WHERE hash IN ({NEEDED_TENSORS}))"
        ).rowcount
        packs = check_packs(connection)
        assets = connection.execute("SELECT DISTINCT name FROM asset").fetchall()
    kept = {folder.pack(pack) for pack in packs} | {folder.asset(row[0]) for row in assets}
    sizes = [remove(path) for path in folder.stored() if path not in kept]
    return GcReport(num_files=len(sizes), num_bytes=sum(sizes), num_tensors=dropped)
