//! The benchmark runs, and its tables hold figures. Muster alone and for moments: it measures nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};

#[test]
fn the_benchmark_fills_its_tables() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_muster-bench"))
        .arg("--quick")
        .output()
        .context("starting the benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    // Title, rows, and the column that must be a figure above nothing.
    for (title, rows, column) in [
        (
            "### Writes over the peers' gRPC",
            ["| 1 |", "| 8 |"].as_slice(),
            2,
        ),
        ("### Writes over REST", &["| 1 |", "| 8 |"], 2),
        ("### Linearizable reads", &["| 1 |", "| 8 |"], 2),
        (
            "### First write after the leader's SIGKILL",
            &["| Muster, "],
            3,
        ),
    ] {
        let (_, section) = text
            .split_once(title)
            .with_context(|| format!("no {title}: {text}"))?;
        for row in rows {
            let line = section.lines().find(|line| line.starts_with(row));
            let line = line.with_context(|| format!("no row {row} in {title}: {text}"))?;
            let figure = line.split('|').nth(column).context("a short row")?;
            let figure: f64 = figure.trim().parse().with_context(|| line.to_owned())?;
            ensure!(figure > 0.0, "{title}: {line}");
        }
    }
    ensure!(!text.contains("failed"), "{text}\n{said}");
    Ok(())
}
