//! The boot benchmark runs, and its tables hold figures. Muster alone and for moments: it measures
//! nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};

#[test]
fn the_boot_benchmark_fills_its_tables() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_muster-bench-boot"))
        .arg("--quick")
        .output()
        .context("starting the benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    // Beginnings of rows, and the column that must be a figure above nothing.
    for (row, column) in [
        ("| 1 client | Muster |", 3),
        ("| 4 clients | Muster |", 3),
        ("| 1 client, window 1 | Muster |", 3),
        ("| 4 clients, window 4 | Muster |", 3),
        ("| scripts | 8 |", 3),
        ("| rendered files | 8 |", 3),
    ] {
        let line = text.lines().find(|line| line.starts_with(row));
        let line = line.with_context(|| format!("no row {row}: {text}"))?;
        let figure = line.split('|').nth(column).context("a short row")?;
        let figure: f64 = figure.trim().parse().with_context(|| line.to_owned())?;
        ensure!(figure > 0.0, "{line}");
    }
    Ok(())
}
