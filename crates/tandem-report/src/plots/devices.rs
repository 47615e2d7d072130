//! How busy each device was.

use super::{Bars, Outcome, left_out};
use crate::Session;
use crate::figure::{BOTH, CPU, IDLE, IGPU, PlotError};

const NAME: &str = "devices";

pub(super) fn draw(session: &Session) -> Result<Outcome, PlotError> {
    if session.duration_ms <= 0.0 || session.devices.is_empty() {
        return Ok(left_out(NAME, "the session has no duration, or no devices"));
    }
    let whole = session.duration_ms;
    let both = session.overlap.map_or(0.0, |overlap| overlap.both_busy_ms);
    let rows = session.devices.iter().map(|device| {
        let busy = device.busy_ms.min(whole);
        let both = both.min(busy);
        let (on_cpu, on_igpu) =
            if device.device == "igpu" { (0.0, busy - both) } else { (busy - both, 0.0) };
        let parts = [on_cpu, on_igpu, both, whole - busy];
        (device.device.clone(), parts.map(|part| 100.0 * part / whole).to_vec())
    });
    let shares = session.devices.iter().map(|device| {
        let share = 100.0 * device.busy_ms / whole;
        format!("{} busy {share:.1} % at {:.1} GB/s", device.device, device.gbps_while_busy)
    });
    let caption = format!("Share of the session: {}.", shares.collect::<Vec<_>>().join(", "));
    let legend =
        vec![("CPU alone", CPU), ("iGPU alone", IGPU), ("both at once", BOTH), ("idle", IDLE)];
    Bars {
        name: NAME,
        title: "Device utilisation",
        unit: "share of the session (%)",
        legend,
        rows: rows.collect(),
    }
    .draw(caption)
}
