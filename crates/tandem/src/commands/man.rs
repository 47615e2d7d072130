//! `tandem man`: manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use tandem_formats::AtomicFile;

/// Write a manual page for each command into a folder, as in `tandem man ~/.local/share/man/man1`
#[derive(Args)]
pub(crate) struct ManArgs {
    /// The folder; made if need be
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn man<C: CommandFactory>(args: &ManArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.folder)
        .map_err(|e| anyhow::anyhow!("{}: cannot make the folder: {e}", args.folder.display()))?;
    let mut all = C::command();
    all.build();
    let commands = all.get_subcommands().filter(|command| command.get_name() != "help");
    for command in std::iter::once(&all).chain(commands) {
        let manual = clap_mangen::Man::new(command.clone());
        let mut page = Vec::new();
        manual.render(&mut page)?;
        let mut file = AtomicFile::create(&args.folder.join(manual.get_filename()))?;
        file.append(&page)?;
        file.commit()?;
    }
    Ok(ExitCode::SUCCESS)
}
