//! Every mutant dies, and what is right survives the same checks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use swiglu_testkit::{Fake, Kill, Mutant, Naive, kills, kinds, mutant_cases};

/// A mutant counts as safely dead when this many kinds of check notice it.
const ENOUGH: usize = 2;

/// Which checks notice each mutant, in the order of the list.
fn examine(mutants: &[Mutant]) -> Vec<Vec<Kill>> {
    let cases = mutant_cases();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let kills = mutant.kills(&cases, ENOUGH);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((*mutant, kills));
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let of = |mutant: &Mutant| done.iter().find(|(other, _)| other == mutant).map(|(_, kills)| kills.clone());
    mutants.iter().map(|mutant| of(mutant).expect("every mutant was examined")).collect()
}

#[test]
fn every_mutant_dies() {
    let mutants: Vec<Mutant> = Mutant::all().collect();
    let (mut alive, mut by_one_kind) = (Vec::new(), Vec::new());
    for (mutant, kills) in mutants.iter().zip(examine(&mutants)) {
        let kinds = kinds(&kills);
        let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        println!("{:<26}{:>5}  {}", mutant.to_string(), kills.len(), list.join(", "));
        match kinds.len() {
            0 => alive.push(format!("{mutant}: {}", mutant.description())),
            1 => by_one_kind.push(mutant.to_string()),
            _ => {}
        }
    }
    println!("mutation score: {} of {}", mutants.len() - alive.len(), mutants.len());
    println!("noticed by one kind of check only: {}", by_one_kind.join(", "));
    assert!(mutants.len() >= 30, "only {} mutants", mutants.len());
    assert!(alive.is_empty(), "alive:\n{}", alive.join("\n"));
}

#[test]
fn what_is_right_survives() {
    let cases = mutant_cases();
    for (name, kills) in [
        ("naive", kills(&Naive::new(), &cases, usize::MAX)),
        ("fake", kills(&Fake::new(Naive::new(), 0), &cases, usize::MAX)),
    ] {
        let said: Vec<String> = kills
            .iter()
            .map(|kill| {
                let case = kill.case.map_or(String::new(), |case| format!(" `{case}`"));
                format!("{}{case}: {}", kill.check, kill.message)
            })
            .collect();
        assert!(said.is_empty(), "{name}: {}", said.join("\n"));
    }
}
