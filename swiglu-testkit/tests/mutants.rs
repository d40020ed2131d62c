//! Every mutant dies, and what is right survives the same checks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use swiglu_testkit::{Fake, Kill, Mutant, Naive, kills, mutant_cases};

/// How often each kind of check noticed.
fn by_kind(kills: &[Kill]) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for kill in kills {
        *kinds.entry(kill.kind()).or_default() += 1;
    }
    kinds
}

#[test]
fn every_mutant_dies() {
    let cases = mutant_cases();
    let mutants: Vec<Mutant> = Mutant::all().collect();
    let (mut table, mut alive, mut by_one_kind) = (String::new(), Vec::new(), Vec::new());
    for mutant in &mutants {
        let kills = mutant.kills(&cases);
        let kinds = by_kind(&kills);
        let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let _ = writeln!(table, "{:<26}{:>5}  {}", mutant.to_string(), kills.len(), list.join(", "));
        match kinds.len() {
            0 => alive.push(format!("{mutant}: {}", mutant.description())),
            1 => by_one_kind.push(mutant.to_string()),
            _ => {}
        }
    }
    let (dead, all) = (mutants.len() - alive.len(), mutants.len());
    println!("{table}mutation score: {dead} of {all}, on {} cases", cases.len());
    println!("noticed by one kind of check only: {}", by_one_kind.join(", "));
    assert!(all >= 30, "only {all} mutants");
    assert!(alive.is_empty(), "alive:\n{}", alive.join("\n"));
}

#[test]
fn what_is_right_survives() {
    let cases = mutant_cases();
    for (name, kills) in
        [("naive", kills(&Naive::new(), &cases)), ("fake", kills(&Fake::new(Naive::new(), 0), &cases))]
    {
        let said: Vec<String> =
            kills.iter().map(|kill| format!("{} {:?}: {}", kill.check, kill.case, kill.message)).collect();
        assert!(said.is_empty(), "{name}: {}", said.join("\n"));
    }
}
