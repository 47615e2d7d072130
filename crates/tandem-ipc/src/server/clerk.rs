//! Errands that take a while, but need no device: prompts, telemetry, policy and config.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use super::service::Service;
use super::works::{News, Report};
use crate::protocol::{Answer, Code, Fault, Generate, ReloadConfig, SetPolicy};
use crate::wake::Outlet;

/// Errands that wait, at most.
const MAX_ERRANDS: usize = 256;

/// Something to do.
pub(super) enum Errand {
    Generate(Box<Generate>),
    GetTelemetry,
    GetBandwidthStats,
    GetState,
    GetTrace,
    SetPolicy(SetPolicy),
    ReloadConfig(ReloadConfig),
}

/// A thread that runs errands, first come, first served.
pub(super) struct Clerk {
    errands: Option<SyncSender<(u64, Errand)>>,
    thread: Option<JoinHandle<()>>,
}

impl Clerk {
    pub(super) fn start(service: Arc<Service>, outlet: Outlet<Report>) -> std::io::Result<Self> {
        let (errands, waiting) = sync_channel(MAX_ERRANDS);
        let thread = std::thread::Builder::new().name("tandem-clerk".into()).spawn(move || {
            for (work, errand) in waiting {
                run(&service, &outlet, work, errand);
            }
        })?;
        Ok(Self { errands: Some(errands), thread: Some(thread) })
    }

    /// Takes an errand, where not too many wait.
    pub(super) fn take(&self, work: u64, errand: Errand) -> Result<(), Fault> {
        let Some(errands) = &self.errands else { return Ok(()) };
        errands.try_send((work, errand)).map_err(|error| match error {
            TrySendError::Full(_) => Fault {
                code: Code::QueueFull,
                message: format!("{MAX_ERRANDS} requests wait to be read: try again later"),
            },
            TrySendError::Disconnected(_) => Fault::failed("a thread of the scheduler has ended"),
        })
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        self.errands = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, that has been printed.
            let _ = thread.join();
        }
    }
}

fn run(service: &Service, outlet: &Outlet<Report>, work: u64, errand: Errand) {
    let tell = |news| outlet.send(Report::Of { work, news });
    let answer = match errand {
        Errand::Generate(generate) => match begin(service, outlet, work, &generate) {
            Ok(()) => return,
            Err(fault) => Err(fault),
        },
        Errand::GetTelemetry => service.telemetry(),
        Errand::GetBandwidthStats => service.bandwidth_stats(),
        Errand::GetState => Ok(service.state()),
        Errand::GetTrace => service.trace(),
        Errand::SetPolicy(policy) => service.set_policy(&policy),
        Errand::ReloadConfig(reload) => service.reload_config(&reload),
    };
    let answer = answer.unwrap_or_else(|fault| Answer::error(&fault));
    tell(News::Done(Box::new(answer)));
}

/// Hands a text to the engine.
fn begin(
    service: &Service,
    outlet: &Outlet<Report>,
    work: u64,
    generate: &Generate,
) -> Result<(), Fault> {
    let (prompt_ids, request) = generate.prepare(&service.text)?;
    let (seed, written) = (request.sampling.seed, generate.written_ids.len());
    let prompt = [&prompt_ids[..], &generate.written_ids].concat();
    outlet.send(Report::Of { work, news: News::Prepared { prompt_ids, seed } });
    let teller = Teller { outlet: outlet.clone(), work };
    let cancel = service
        .engine
        .resume_to(prompt, written, request, move |event| teller.tell(News::Text(event)))
        .map_err(|error| Fault::from(&error))?;
    outlet.send(Report::Of { work, news: News::Accepted(cancel) });
    Ok(())
}

/// Tells of a text, and that nothing more comes of it.
struct Teller {
    outlet: Outlet<Report>,
    work: u64,
}

impl Teller {
    fn tell(&self, news: News) {
        self.outlet.send(Report::Of { work: self.work, news });
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.tell(News::Silence);
    }
}
