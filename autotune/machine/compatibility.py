"""Whether a tuned config may be used here: same model, same hardware, enough cores."""

from __future__ import annotations

from autotune.config.model import Model
from autotune.config.profile import Fingerprint
from autotune.config.tuned import TunedConfig
from autotune.errors import FingerprintError, InputError, MachineError
from autotune.machine.topology import fingerprint_differences, software_differences

_HASH_DIGITS = 12


def check(
    config: TunedConfig, model: Model, fingerprint: Fingerprint, *, force: bool = False, ranks: int = 1, ranks_on_host: int = 1
) -> list[str]:
    """Hold a config against the model and the machine at hand.

    Args:
        fingerprint: This machine's.
        force: Use a config of other hardware all the same; it does not help against another model or missing cores.
        ranks: That run it.
        ranks_on_host: That share this machine's cores.

    Returns:
        Notes: differences of the software, and of the hardware where `force` let them pass.

    Raises:
        InputError: it is for another number of sockets.
        FingerprintError: it belongs to another model or minibatch; or to other hardware, without `force`. Names every difference.
        MachineError: it wants more threads than this process has cores.
    """
    here_hash = model.hash()
    if config.model_hash != here_hash:
        raise FingerprintError(
            f"a tuned config belongs to one model: config {config.model} ({config.model_hash[:_HASH_DIGITS]}), "
            f"here {model.name} ({here_hash[:_HASH_DIGITS]}); tune {model.name} or give the model it was tuned for"
        )
    if config.minibatch != model.minibatch:
        raise FingerprintError(
            f"a tuned config belongs to one minibatch: config {config.minibatch}, model {model.name} {model.minibatch}; "
            "tune again with --minibatch, or set the config's back"
        )
    if config.sockets != ranks:
        rule = f"a tuned config belongs to one number of sockets: config {config.sockets}, here {ranks}"
        raise InputError(f"{rule} (tuned config for {config.model}); run it with --sockets {config.sockets}, or tune for {ranks}")
    notes = []
    differences = fingerprint_differences(config.fingerprint, fingerprint)
    if differences:
        if not force:
            raise FingerprintError(
                f"a tuned config belongs to the hardware it was tuned on, and this differs: {'; '.join(differences)}; "
                "tune again here, or use it all the same with --force"
            )
        notes.append(f"used on other hardware: {'; '.join(differences)}")
    cores = fingerprint.topology.physical_cores
    threads = config.config.threads * ranks_on_host
    if threads > cores:
        raise MachineError(
            f"threads must not exceed the {cores} physical cores that this process may use, "
            f"got {threads} (tuned config for {config.model}); tune again here or widen the cpuset"
        )
    different = software_differences(config.fingerprint, fingerprint)
    if different:
        notes.append(f"tuned with other software: {'; '.join(different)}")
    return notes
