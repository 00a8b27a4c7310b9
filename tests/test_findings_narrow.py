"""The committed rows bear out what docs/findings.md says of the profile `narrow`, which has the paper's numbers of images."""

from itertools import product

from committed import best, by_name, paper
from conftest import ROOT

from common.report.frontier import cell_in, over_bare
from common.report.load import of_kind, read_rows
from common.report.paper import paper_lines


def test_the_narrow_profile_lands_where_the_paper_is() -> None:
    narrow, small = (by_name("cifar10", f"{profile}-clean-seed0") for profile in ("narrow", "small"))
    (paper,) = (line["auc"] / 100 for key, line in paper_lines(ROOT).items() if key == ("undefended", "without"))
    without = narrow["undefended", None]
    assert without["config"]["data"]["members"] == 25_000
    assert abs(without["best"]["auc"] - paper) < 0.03
    assert small["undefended", None]["best"]["auc"] > paper + 0.1
    for scenario in ("1", "2", "3"):
        row = narrow["undefended", scenario]
        assert row["best"]["auc"] < without["best"]["auc"] - 0.1
        assert abs(row["best"]["auc"] - row["gap_floor"]) < 0.03
        assert row["diffence"]["labels_changed"] == {"members": 0, "non_members": 0}
    aucs = [narrow["undefended", scenario]["best"]["auc"] for scenario in ("1", "2", "3")]
    low, high = narrow["undefended", "1"]["attacks"][narrow["undefended", "1"]["best"]["attack"]]["auc_interval"]
    assert max(aucs) - min(aucs) < high - low


def test_hamp_exceeds_the_undefended_classifier_by_less_with_more_members() -> None:
    excess = {}
    for profile in ("narrow", "small"):
        rows = by_name("cifar10", f"{profile}-clean-seed0")
        excess[profile] = rows["hamp", None]["best"]["auc"] - rows["undefended", None]["best"]["auc"]
    assert 0 < excess["narrow"] < excess["small"]
    narrow = by_name("cifar10", "narrow-clean-seed0")
    assert narrow["hamp", None]["accuracy"]["non_members"] >= narrow["undefended", None]["accuracy"]["non_members"]


def test_the_choice_of_the_interval_hardly_matters_at_the_paper_s_partition() -> None:
    rows = of_kind(read_rows(ROOT), "intervals")
    (row,) = (row for row in rows if (row["profile"], row["defense"]) == ("narrow", "undefended"))
    assert len(row["intervals"]) == 210
    assert abs(row["rank_correlation"]["js_and_auc"]) < 0.1
    assert all(draws["later_hits"] > 0.5 for draws in row["draws"])


def test_on_the_generated_data_the_interval_matters_for_some_defenses() -> None:
    rows = {row["defense"]: row for row in of_kind(read_rows(ROOT), "intervals") if row["dataset"] == "synthetic"}
    correlations = {defense: row["rank_correlation"]["js_and_auc"] for defense, row in rows.items()}
    assert all(correlations[defense] > 0.3 for defense in ("advreg", "hamp", "relaxloss", "dpsgd"))
    assert all(correlations[defense] < 0.1 for defense in ("undefended", "memguard", "selena"))
    for defense in ("advreg", "hamp", "relaxloss", "dpsgd", "undefended", "memguard", "selena"):
        (half,) = (draws["later_hits"] for draws in rows[defense]["draws"] if draws["share"] == 0.5)
        assert half > 0.5, defense


def test_on_cifar100_every_defense_ends_at_a_high_gap_floor() -> None:
    rows = by_name("cifar100", "narrow-clean-seed0")
    assert {defense for defense, _ in rows} == {"undefended", "hamp", "relaxloss", "memguard"}
    assert all(abs(best(row).above_floor) < 0.03 for (_, scenario), row in rows.items() if scenario)
    assert all(best(rows["memguard", one]).auc > best(rows["undefended", one]).auc - 0.01 for one in ("1", "2", "3"))
    for defense in ("undefended", "hamp", "relaxloss", "memguard"):
        accuracy = rows[defense, None]["accuracy"]
        unmatched = rows[defense, "1"]["diffence"]["no_match"]
        assert 0.095 < unmatched["members"] / 2_000 < 0.17 and 0.18 <= unmatched["non_members"] / 2_000 < 0.2, defense
        on_cifar10 = by_name("cifar10", "narrow-clean-seed0")[defense, "1"]["diffence"]["no_match"]
        assert all(on_cifar10[side] < unmatched[side] / 3 for side in unmatched)
        assert 0.35 < accuracy["non_members"] < 0.45 and accuracy["members"] > 0.95, defense


def test_a_hundredth_of_the_papers_network_protects_as_well() -> None:
    rows = {(row["network"], row["training"]): row for row in of_kind(read_rows(ROOT), "frontier")}
    small, alone, wide = rows["width 16", "up to T"], rows["width 16", "T alone"], rows["width 32", "up to T"]
    assert ("width 64", "up to T") not in rows and ("width 64", "T alone") not in rows, (
        "the page says that they are not measured"
    )
    assert round(small["cost"]["gflop"]["unet"], 2) == 0.12 and round(wide["cost"]["gflop"]["unet"], 2) == 0.49
    for scenario in ("1", "3"):
        cells = [cell_in(row, scenario) for row in (small, alone, wide)]
        for one, other in product(cells, cells):
            assert one["auc_interval"][0] < other["best"]["auc"] < one["auc_interval"][1]
        assert all(abs(cell["best"]["auc"] - small["gap_floor"]) < 0.02 for cell in cells)
    assert all(7 < over_bare(row, "3") < 10 for row in (small, alone, wide))
    attacked = [
        round(query["over_bare"]["3"])
        for row in (small, alone, wide)
        for query in row["cost"]["queries"]
        if (query["classifier"], query["batch"]) == ("trained", 1)
    ]
    assert (min(attacked), max(attacked)) == (20, 28)
    assert wide["ddpm"]["steps"] < small["ddpm"]["steps"] / 2
    assert small["config"]["data"]["known"] == 250
    assert over_bare(alone, "1") < 12 < min(over_bare(small, "1"), over_bare(wide, "1"))


def test_what_further_defenses_do_at_the_paper_s_partition() -> None:
    rows, hundred = by_name("cifar10", "narrow-clean-seed0"), by_name("cifar100", "narrow-clean-seed0")
    without = {defense: row["best"]["auc"] for (defense, scenario), row in rows.items() if scenario is None}
    assert {*without} == {"undefended", "hamp", "relaxloss", "memguard", "advreg"}
    in_hundred = {defense: hundred[defense, None]["best"]["auc"] for defense in ("undefended", "hamp")}
    assert in_hundred["hamp"] < in_hundred["undefended"] and without["hamp"] > without["undefended"]
    means = [(in_hundred[defense] + without[defense]) / 2 for defense in ("undefended", "hamp")]
    assert abs(means[0] - means[1]) < 0.02
    for defense in ("relaxloss", "memguard"):
        ours = without["undefended"] - without[defense]
        papers = paper("undefended").auc - paper(defense).auc
        assert ours > 0 and abs(ours - papers) < 0.05
        assert hundred["undefended", None]["best"]["auc"] - hundred[defense, None]["best"]["auc"] > papers
    options = rows["advreg", None]["config"]["defenses"]["advreg"]
    assert (options["alpha"], options["attack_batches"]) == (6, 2)
    assert without["advreg"] >= without["undefended"]
