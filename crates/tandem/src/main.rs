//! The command line of Tandem. Thin: it reads options, calls the libraries and prints.
#![forbid(unsafe_code)]

/// Prints a line to stderr. Unlike `eprintln!`, does without where nobody listens any more.
macro_rules! note {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($arg)*);
    }};
}

mod backend;
mod commands;
mod demo;
mod engine;
mod figures;
mod interrupt;
mod onnx_engine;
mod options;
mod placement;
mod prefill;
mod progress;
mod prompt;
mod report;
#[expect(dead_code, reason = "the commands that serve are built on it")]
mod service;
mod threads;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Mixture-of-Experts language models (PhiMoE) on your own computer.
///
/// Try it without any model of your own: `tandem run "Tell me a short story about a dragon named Max."`
#[derive(Parser)]
#[command(name = "tandem", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(commands::run::RunArgs),
    Chat(commands::chat::ChatArgs),
    Serve(commands::serve::ServeArgs),
    Scheduler(commands::scheduler::SchedulerArgs),
    Generate(commands::generate::GenerateArgs),
    Inspect(commands::inspect::InspectArgs),
    Analyze(commands::analyze::AnalyzeArgs),
    Quantize(commands::quantize::QuantizeArgs),
    ExportOnnx(commands::export_onnx::ExportOnnxArgs),
    Tokenize(commands::tokenize::TokenizeArgs),
    Bench(commands::bench::BenchArgs),
    Perplexity(commands::perplexity::PerplexityArgs),
    Logits(commands::logits::LogitsArgs),
    Calibrate(commands::calibrate::CalibrateArgs),
    Plan(commands::plan::PlanArgs),
    Policies(commands::policies::PoliciesArgs),
    Report(commands::report_session::ReportArgs),
    Devices(commands::devices::DevicesArgs),
    Doctor(commands::doctor::DoctorArgs),
    Completions(commands::completions::CompletionsArgs),
    Man(commands::man::ManArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run::run(&args),
        Command::Chat(args) => commands::chat::chat(&args),
        Command::Serve(args) => commands::serve::serve(&args),
        Command::Scheduler(args) => commands::scheduler::scheduler(&args),
        Command::Generate(args) => commands::generate::generate(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Analyze(args) => commands::analyze::analyze(&args),
        Command::Quantize(args) => commands::quantize::quantize(&args),
        Command::ExportOnnx(args) => commands::export_onnx::export_onnx(&args),
        Command::Tokenize(args) => commands::tokenize::tokenize(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Perplexity(args) => commands::perplexity::perplexity(&args),
        Command::Logits(args) => commands::logits::logits(&args),
        Command::Calibrate(args) => commands::calibrate::calibrate(&args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Policies(args) => commands::policies::policies(&args),
        Command::Report(args) => commands::report_session::report(&args),
        Command::Devices(args) => commands::devices::list(&args),
        Command::Doctor(args) => commands::doctor::doctor(&args),
        Command::Man(args) => commands::man::man::<Cli>(&args),
        Command::Completions(args) => commands::completions::completions::<Cli>(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            note!("error: {}", one_message(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error with its causes, each said once: many errors repeat their cause in their own text.
fn one_message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Whoever read our output has seen enough (`tandem run ... | head -1`): that is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// Names of options that several groups have are found here, and not by whoever types the command.
    #[test]
    fn options_of_every_command_go_together() {
        super::Cli::command().debug_assert();
    }
}
