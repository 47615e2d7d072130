//! One page that has all plots in it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::{Environment, context};

use crate::Session;
use crate::plots::Outcome;

/// The name decides that everything that is put in is escaped.
const TEMPLATE: &str = "page.html";

/// The page's HTML.
///
/// # Errors
/// When the template and what is put in do not fit each other.
pub(crate) fn page(session: &Session, outcomes: &[Outcome]) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.add_template(TEMPLATE, include_str!("page.html"))?;
    let plots: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Drawn(figure) => Some(context! {
                name => figure.name,
                caption => figure.caption.as_str(),
                data => STANDARD.encode(&figure.svg),
            }),
            Outcome::LeftOut { .. } => None,
        })
        .collect();
    let left_out: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::LeftOut { name, reason } => Some([(*name).to_owned(), reason.clone()]),
            Outcome::Drawn(_) => None,
        })
        .collect();
    environment.get_template(TEMPLATE)?.render(context! {
        session => context! { started => session.started.as_str() },
        figures => figures(session),
        plots,
        left_out,
        operations => operations(session),
    })
}

/// The figures on top, each with its name.
fn figures(session: &Session) -> Vec<[String; 2]> {
    let mut figures = Vec::new();
    let mut add = |name: &str, value: String| figures.push([name.to_owned(), value]);
    add("duration", format!("{:.2} s", session.duration_ms / 1e3));
    add("operations", session.total_packets_processed.to_string());
    add("failed", session.failed_packets.to_string());
    add("CPU bandwidth (counted)", format!("{:.2} GB/s", session.cpu_bandwidth_gbps));
    add("iGPU bandwidth (counted)", format!("{:.2} GB/s", session.igpu_bandwidth_gbps));
    if let Some(share) = session.utilization {
        add("memory utilisation", format!("{:.1} %", 100.0 * share));
    }
    if let Some(mb) = session.peak_memory_usage_mb {
        add("peak memory", format!("{mb:.0} MB"));
    }
    if let Some(bubbles) = session.pipeline_bubbles {
        let waited =
            |ms: Option<f64>| ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms:.1} ms"));
        add("CPU waited for the iGPU", waited(bubbles.cpu_ms));
        add("iGPU waited for the CPU", waited(bubbles.igpu_ms));
    }
    if session.lost_events > 0 {
        add("records lost", session.lost_events.to_string());
    }
    figures
}

fn operations(session: &Session) -> Vec<[String; 7]> {
    let row = |o: &crate::OperationTime| {
        [
            o.operation.clone(),
            o.device.clone(),
            o.count.to_string(),
            format!("{:.3}", o.total_ms),
            format!("{:.4}", o.mean_ms),
            format!("{:.4}", o.p99_ms),
            format!("{:.2}", o.gbps),
        ]
    };
    session.operations.iter().map(row).collect()
}
