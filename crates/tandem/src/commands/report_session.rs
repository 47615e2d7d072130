//! `tandem report`: plots of a telemetry session.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tandem_report::{LastPass, Report, Session};

/// Draw plots of a telemetry session: SVG, PNG, and one page (report.html) that has them all
///
/// Device utilisation, time by operation and by layer, experts chosen; with --trace also what both devices did in the last
/// pass. docs/telemetry.md says what each figure means. No browser is needed.
#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Summary of the session (JSON)
    #[arg(value_name = "SESSION.json")]
    session: PathBuf,

    /// Folder to write to; made if need be
    #[arg(short, long, value_name = "DIR", env = "TANDEM_REPORT_OUTPUT")]
    output: PathBuf,

    /// The session's trace (JSON) or rows (.csv), for the timeline
    #[arg(long, value_name = "FILE", env = "TANDEM_REPORT_TRACE")]
    trace: Option<PathBuf>,
}

pub(crate) fn report(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let session = Session::read(&args.session)?;
    let pass = args.trace.as_deref().map(LastPass::read).transpose()?;
    let report = Report::draw(&session, pass.as_ref())?;
    let paths = report.write(&args.output)?;
    for left_out in report.left_out() {
        note!("no plot of {left_out}");
    }
    let mut stdout = std::io::stdout();
    for path in paths {
        writeln!(stdout, "{}", path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
