//! What the operators of one Server did, as its data directory has it. Asks nobody: it works while the Server does
//! not run, too.

use std::path::PathBuf;

use clap::Args;
use p2p_runtime::exit::{Exit, chain};
use p2p_runtime::identity::DataDirView;

use super::show::{dash, print, print_columns};
use crate::audit::{AuditRecord, read_all};

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Data directory of the Server
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Show the last N records; 0 for all there are
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
    /// Print JSON for programs, a record a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &AuditArgs) -> Result<(), Exit> {
    let dir = DataDirView::open(&args.data).map_err(|e| Exit::failed(chain(&e)))?;
    let (records, unreadable) = read_all(dir.path())
        .map_err(|e| Exit::failed(format!("cannot read the audit log in {}: {e}", args.data.display())))?;
    let first = if args.last == 0 { 0 } else { records.len().saturating_sub(args.last) };
    let shown = &records[first..];
    if args.json {
        let lines: Vec<u8> = shown.iter().flat_map(AuditRecord::to_line).collect();
        return print(&String::from_utf8(lines).expect("JSON is UTF-8"));
    }
    let rows: Vec<_> = shown
        .iter()
        .map(|record| {
            let outcome = match record.left_out {
                0 => record.outcome.clone(),
                count => format!("{} (and {count} calls before it)", record.outcome),
            };
            [&record.time, &record.caller, &record.remote, &record.method, &record.target, &outcome]
                .map(|text| dash(text.clone()))
        })
        .collect();
    print_columns(["TIME", "CALLER", "FROM", "METHOD", "TARGET", "OUTCOME"], &rows)?;
    if first > 0 {
        eprintln!("{first} older records are not shown: --last 0 shows all");
    }
    if unreadable > 0 {
        eprintln!("{unreadable} lines cannot be read: a crash leaves half a line at most");
    }
    Ok(())
}
