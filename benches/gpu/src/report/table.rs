//! A measurement as lines of text.

use std::fmt::{self, Write};

use crate::measure::{Entry, Outcome};

/// The lines of a measurement, the last one with its end.
pub(crate) fn lines(outcome: &Outcome) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let Outcome { job, sets, calls, rotated_bytes, l2, tolerance, .. } = outcome;
    let memory = job.is_memory_bound();
    let (rate, bound) = if memory { ("TB/s", "of copy") } else { ("TFLOP/s", "of peak") };
    let rotated = *rotated_bytes as f64 / 1e6;
    writeln!(text, "\n{job}")?;
    writeln!(
        text,
        "{l2} L2: x and Wf of {sets} set(s), {rotated:.0} MB; {calls} calls a round; {}",
        outcome.launches.join("; ")
    )?;
    writeln!(
        text,
        "  {:<26} {:>9} {:>19} {rate:>8} {bound:>8} {:>7} {:>15} {:>9}",
        "", "ms", "quartiles", "ratio", "quartiles", "error"
    )?;
    for entry in &outcome.entries {
        let Entry { contender, seconds, ratio, error, .. } = entry;
        let rate = if memory { entry.bytes_per_second } else { entry.flops_per_second } / 1e12;
        let digits = if memory { 2 } else { 1 };
        let [median, lower, upper] = [seconds.median, seconds.lower, seconds.upper].map(|s| s * 1e3);
        let quartiles = format!("{lower:.4} .. {upper:.4}");
        let ratios = format!("{:.3} .. {:.3}", ratio.lower, ratio.upper);
        let error = match error {
            Some(error) if *error <= *tolerance => format!("{error:.1e}"),
            Some(error) => format!("{error:.1e} WRONG"),
            None => "-".to_owned(),
        };
        writeln!(
            text,
            "  {:<26} {median:>9.4} {quartiles:>19} {rate:>8.digits$} {:>6.1} % {:>7.3} {ratios:>15} {error:>9}",
            contender.label(),
            entry.of_bound * 100.0,
            ratio.median,
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Op;
    use crate::report::samples;

    #[test]
    fn every_contender_has_a_line() {
        let text = lines(&samples::outcomes(&[Op::Forward])[0]).unwrap_or_else(|e| panic!("{e}"));
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[1], "forward, bf16, W [I, 2D]: 8192, 4096, 14336");
        assert_eq!(rows[2], "cold L2: x and Wf of 2 set(s), 632 MB; 2 calls a round; a kernel");
        assert_eq!(rows.len(), 8);
        for part in ["swiglu, fused", "2.7488", "700.0", "90.0 %", "1.000", "4.0e-3"] {
            assert!(rows[4].contains(part), "{part} is not in {}", rows[4]);
        }
        assert!(rows[5].contains("1.100") && rows[5].ends_with('-'), "{}", rows[5]);
        assert_eq!(rows[3].len(), rows[4].len(), "columns stand below each other:\n{text}");
    }

    #[test]
    fn bandwidth_is_shown_where_it_is_the_bound() {
        let text = lines(&samples::outcomes(&[Op::Decode])[0]).unwrap_or_else(|e| panic!("{e}"));
        assert!(text.contains("TB/s") && text.contains("of copy") && !text.contains("TFLOP/s"), "{text}");
    }

    #[test]
    fn wrong_results_stand_out() {
        let mut outcome = samples::outcomes(&[Op::Mnist]).swap_remove(0);
        outcome.entries[0].error = Some(0.5);
        let text = lines(&outcome).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(text.matches("WRONG").count(), 1);
    }
}
