//! The DHCP benchmark runs, and its tables hold figures. Muster alone and for moments: it measures
//! nothing.

use std::process::Command;

use anyhow::{Context, Result, ensure};

#[test]
fn the_dhcp_benchmark_fills_its_tables() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_muster-bench-dhcp"))
        .arg("--quick")
        .output()
        .context("starting the benchmark")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    for title in ["### New clients, DISCOVER to ACK", "### Renewals"] {
        let (_, section) = text
            .split_once(title)
            .with_context(|| format!("no {title}: {text}"))?;
        let line = section.lines().find(|line| line.starts_with("| 8 |"));
        let line = line.with_context(|| format!("no row in {title}: {text}"))?;
        let rate = line.split('|').nth(3).context("a short row")?;
        let rate: f64 = rate.trim().parse().with_context(|| line.to_owned())?;
        ensure!(rate > 0.0, "{title}: {line}");
    }
    let rows = text.lines().filter(|line| line.contains("| **")).count();
    ensure!(rows == 2, "pools and leases: {text}");
    Ok(())
}
