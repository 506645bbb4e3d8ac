"""What the paper says of time steps, measured on real images before a simulated event camera."""

from __future__ import annotations

from core_utils.claims import Claim, Trial

PAPER = "Deng et al., ICLR 2022, arXiv 2202.11946"


def time_steps(trial: Trial) -> dict[str, float]:
    """One seed: the same network, data and initial weights trained with SDT and with TET, then run for 1..5 steps.

    Accuracies are in percent of the fixed test set, after the last epoch.
    """
    import torch

    from core_utils.files import write_atomically
    from core_utils.runs import Run
    from core_utils.training import Arrays, Loader, seed_everything
    from snn_tet import Loaders, TrainConfig, accuracy_vs_steps, posed_miniature, tiny_vgg, train
    from snn_tet.plots import accuracy_vs_steps_figure

    sizes = {"train_per_class": 400, "test_per_class": 200} if trial.full else {}
    split = posed_miniature(trial.seed, data=trial.data, **sizes)
    test = Loader(Arrays(split.x_test, split.y_test), 250, shuffle=False)
    accuracy = {}
    for loss in ("sdt", "tet"):
        config = TrainConfig(loss=loss, seed=trial.seed)
        loaders = Loaders(Loader(Arrays(split.x_train, split.y_train), config.batch_size, seed=trial.seed))
        seed_everything(trial.seed)
        model = tiny_vgg()
        with Run.open(
            trial.workdir / loss, {"config": config, "data": trial.data, "full": trial.full}, resume=True
        ) as run:
            train(model, loaders, config, run=run, device=trial.device, progress=False)
        accuracy[loss] = {name: 100 * torch.tensor(each) for name, each in accuracy_vs_steps(model, test).items()}
    arms = {name.upper(): (each["prefix"] / 100).tolist() for name, each in accuracy.items()}
    picture = accuracy_vs_steps_figure(arms, f"Does accuracy hold with fewer steps? (seed {trial.seed})")
    write_atomically(trial.workdir / "figures" / "accuracy-over-time-steps.svg", picture)

    sdt, tet = accuracy["sdt"], accuracy["tet"]
    spread = {name: (each["prefix"].max() - each["prefix"].min()).item() for name, each in accuracy.items()}
    figures = {
        "gain_at_one_step": (tet["prefix"][0] - sdt["prefix"][0]).item(),
        "gain_of_single_steps": (tet["single"].mean() - sdt["single"].mean()).item(),
        "spread_removed": spread["sdt"] - spread["tet"],
        "gain_at_trained_steps": (tet["prefix"][-1] - sdt["prefix"][-1]).item(),
    }
    for name, each in accuracy.items():
        steps = {f"{name}_accuracy_{step}_steps": value for step, value in enumerate(each["prefix"].tolist(), start=1)}
        figures |= {**steps, f"{name}_single_step": each["single"].mean().item(), f"{name}_spread": spread[name]}
    return figures


CLAIMS = (
    Claim(
        id="one-step",
        statement="Run for one time step, a network trained with TET is more accurate than one trained with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points",
        measure=time_steps,
        effect="gain_at_one_step",
    ),
    Claim(
        id="single-steps",
        statement="The output of a single time step is more accurate on average with TET than with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points",
        measure=time_steps,
        effect="gain_of_single_steps",
    ),
    Claim(
        id="flatter-in-time",
        statement="Accuracy varies less over the number of time steps (1 to 5) with TET than with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points of spread",
        measure=time_steps,
        effect="spread_removed",
    ),
    Claim(
        id="trained-steps",
        statement="At the number of time steps it was trained for, TET is not worse than SDT by more than one point.",
        source=f"{PAPER}, ImageNet table (TET) and Fang et al. 2021 (SEW-ResNet-34 without TET)",
        paper_value="+0.96 points (ImageNet, SEW-ResNet-34, 4 steps: 68.00 % against 67.04 %)",
        unit="points",
        measure=time_steps,
        effect="gain_at_trained_steps",
        margin=-1.0,
    ),
)
