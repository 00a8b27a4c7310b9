"""How much work each job of a plan is, counted in the units that `throughput.py` measures.

All numbers follow from the config. Not counted are reading the partition, the metrics, the pictures, and the search for
MemGuard's noise in an evaluation.
"""

from collections import Counter
from collections.abc import Callable
from math import ceil

from common.data.partition import evaluation_pools, unscored_members
from common.defenses import DEFENSES, advreg, dpsgd, dpsgd_strong, memguard, selena
from common.experiments.plan import Job
from common.run import Run
from common.training import options_of

# The units. Steps are those of the profile's batch; a prediction is one image through the classifier without gradients.
START = "start of a job"
GUARD_STEP = "step of MemGuard's guard"
ATTACK_EPOCH = "epoch of the NN attack"
PREDICTION = "prediction of an image"
ATTACKER_STEP = "step of AdvReg's attacker"
CLASSIFIER_STEP = "step of the classifier"
DPSGD_STEP = "step of DP-SGD"
STRONG_STEP = "step of dpsgd-strong"
CANDIDATE = "candidate"
DIFFUSION_STEP = "step of the diffusion model"

PROTOCOL, SCENARIOS = "clean", ("1", "2", "3")  # of every evaluation
NULL = 1 / 5  # the NN attack is trained again under shuffled membership, for a fifth of the epochs
Work = Counter[str]  # how many of each unit


def work_of(job: Job, run: Run) -> Work:
    """The work of a job of the run's plan. Raises KeyError for a job that JOBS does not have."""
    kind, *rest = job.name.removeprefix(f"{run.dataset} ").split()
    return Work({START: 1}) + JOBS[kind](run, *rest)


def partition(run: Run) -> Work:
    return Work()


def ddpm(run: Run) -> Work:
    return Work({DIFFUSION_STEP: run.config.ddpm.steps})


def candidates(run: Run) -> Work:
    return Work({CANDIDATE: _evaluated(run) * run.config.diffence.n})


def train(run: Run, defense: str, part: str | None = None) -> Work:
    """The training of a defense, or of one of its sub-models, and the accuracies that the command prints after it."""
    if part is not None:
        return PARTS[defense](run)
    data = run.config.data
    return TRAININGS.get(defense, plain)(run) + Work({PREDICTION: data.members + data.non_members})


def shadow(run: Run, defense: str, index: str) -> Work:
    """The training of a shadow model, with its sub-models."""
    parts = DEFENSES[defense].parts
    work = TRAININGS.get(defense, plain)(run)
    for _ in parts(run) if parts else []:
        work += PARTS[defense](run)
    return work


def evaluate(run: Run, defense: str) -> Work:
    """The predictions of the target and of the shadow models, and the NN attack without Diffence and in each scenario."""
    attack = run.config.attack
    return Work(
        {
            PREDICTION: _evaluated(run) * (1 + run.config.diffence.n) * (1 + attack.shadows),
            ATTACK_EPOCH: (1 + len(SCENARIOS)) * ceil(attack.nn_epochs * (1 + NULL)),
        }
    )


JOBS: dict[str, Callable[..., Work]] = {
    "partition": partition,
    "ddpm": ddpm,
    "candidates": candidates,
    "train": train,
    "shadow": shadow,
    "evaluate": evaluate,
}


def plain(run: Run) -> Work:
    """A training on all members, with the accuracy on the non-members in each epoch where `train.best_on_test` is set."""
    epochs = run.config.train.epochs
    return Work({CLASSIFIER_STEP: epochs * _batches(run)}) + _tests(run, epochs)


def selena_part(run: Run) -> Work:
    """A plain training on the (K - L) / K of the members that a sub-model does not leave out, on average."""
    options, train = options_of(run, "selena", selena.Options), run.config.train
    members = run.config.data.members * (options.k - options.l) / options.k
    return Work({CLASSIFIER_STEP: train.epochs * ceil(members / train.batch_size)})


def selena_student(run: Run) -> Work:
    """A plain training, after each member is predicted by the L sub-models that left it out."""
    options = options_of(run, "selena", selena.Options)
    return plain(run) + Work({PREDICTION: run.config.data.members * options.l})


def advreg_training(run: Run) -> Work:
    """A plain training and, after the warm-up epochs, the steps of the attacker in every round and before the first one."""
    options, data, train = options_of(run, "advreg", advreg.Options), run.config.data, run.config.train
    epochs = train.epochs - options.warmup_epochs
    if epochs <= 0:
        return plain(run)
    attack_batches, defender_batches = options.steps_per_round
    fewer = min(data.members, data.reference)
    first = options.warmup_attack_passes * (fewer // max(min(train.batch_size, fewer), 1))
    rounds = epochs * ceil(_batches(run) / defender_batches)
    return plain(run) + Work({ATTACKER_STEP: first + rounds * attack_batches})


def dpsgd_training(run: Run) -> Work:
    """As many batches of DP-SGD in an epoch as full batches of members."""
    train = run.config.train
    return Work({DPSGD_STEP: train.epochs * (run.config.data.members // train.batch_size)}) + _tests(run, train.epochs)


def strong_training(run: Run) -> Work:
    """The same with epochs and batches of its own. A step is on all views of the batch."""
    options = options_of(run, dpsgd_strong.NAME, dpsgd_strong.Options)
    steps = options.epochs * (run.config.data.members // options.batch_size)
    return Work({STRONG_STEP: steps}) + _tests(run, options.epochs)


def memguard_training(run: Run) -> Work:
    """The training of the guard on the undefended classifier's predictions, twice where `train.best_on_test` is set."""
    options, data = options_of(run, "memguard", memguard.Options), run.config.data
    examples = len(unscored_members(data)) + data.reference
    guards = 2 if run.config.train.best_on_test else 1
    steps = options.epochs * ceil(examples / options.batch_size)
    return Work({GUARD_STEP: guards * steps, PREDICTION: guards * examples})


# The defenses whose training is not a plain one. HAMP and RelaxLoss differ from it in the loss alone.
TRAININGS: dict[str, Callable[[Run], Work]] = {
    "selena": selena_student,
    "advreg": advreg_training,
    "dpsgd": dpsgd_training,
    dpsgd.PRIVATE: dpsgd_training,
    dpsgd_strong.NAME: strong_training,
    "memguard": memguard_training,
}
PARTS: dict[str, Callable[[Run], Work]] = {"selena": selena_part}


def _batches(run: Run) -> int:
    """The batches of an epoch over all members."""
    return ceil(run.config.data.members / run.config.train.batch_size)


def _tests(run: Run, epochs: int) -> Work:
    """The accuracy on the non-members in each epoch, where it is measured."""
    return Work({PREDICTION: epochs * run.config.data.non_members if run.config.train.best_on_test else 0})


def _evaluated(run: Run) -> int:
    """The number of evaluated images of both sides."""
    return 2 * len(evaluation_pools(run.config.data, PROTOCOL).used)
