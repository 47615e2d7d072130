//! Everything that is not `cargo build`: `cargo xtask test`, `demo`, `fullsize`, `kernels`, `load`, `cluster`, `package`, `peers`, `device-bundle`, `soak`,
//! `service-cost`, `policies`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for developers at a terminal

mod bundle;
mod cluster;
mod demo;
mod fullsize;
mod kernels;
mod load;
mod package;
mod peers;
mod policies;
mod record;
mod service;
mod shell;
mod test;

use clap::{Parser, Subcommand};

/// Set-up, fixtures and checks of Tandem.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what tests need (Python packages, into target/) and run all tests
    Test(test::TestArgs),
    /// Make the demo model and the corrections that tests need, from its bf16 original
    Demo(demo::DemoArgs),
    /// Make a full-size checkpoint with random weights (7.5 GB) and hold Tandem against the reference's results
    Fullsize(fullsize::FullsizeArgs),
    /// Compile every GPU kernel for Meteor Lake with Intel's offline compiler, and judge what comes out
    Kernels(kernels::KernelsArgs),
    /// Pack what measures Tandem on a machine with a GPU that has nothing of it (bench/gpu/run.sh)
    DeviceBundle(bundle::BundleArgs),
    /// Load the HTTP server, and llama-cpp-python's in the same way
    Load(load::LoadArgs),
    /// Have many clients use the scheduler service for minutes, and look for lost answers and growing memory
    Soak(service::SoakArgs),
    /// Measure what the scheduler service costs, in turns with `tandem bench`
    ServiceCost(service::CostArgs),
    /// Measure two workers behind HAProxy: what a worker's end costs under load, and what routing by beginnings is worth
    Cluster(cluster::ClusterArgs),
    /// Make the Debian package; with --check install it, and what `cargo install` makes, where there is nothing else
    Package(package::PackageArgs),
    /// Measure Tandem and other programs in turns, at full size, with models of equal cost per token
    Peers(peers::PeersArgs),
    /// Compare scheduling policies, with and without pipelining and the bandwidth token
    Policies(policies::PoliciesArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Test(args) => test::test(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Fullsize(args) => fullsize::fullsize(&args),
        Command::Kernels(args) => kernels::kernels(&args),
        Command::DeviceBundle(args) => bundle::bundle(&args),
        Command::Load(args) => load::load(&args),
        Command::Soak(args) => service::soak(&args),
        Command::ServiceCost(args) => service::cost(&args),
        Command::Cluster(args) => cluster::cluster(&args),
        Command::Package(args) => package::package(&args),
        Command::Peers(args) => peers::peers(&args),
        Command::Policies(args) => policies::policies(&args),
    }
}
