//! What is asked of events.

use super::Event;
use crate::error::{Named, Result};

impl Event {
    /// Waits until the command is done.
    pub(crate) fn wait(&self) -> Result<()> {
        cl3::event::wait_for_events(&[self.raw()]).named("clWaitForEvents")
    }

    /// Whether the command is done.
    ///
    /// # Errors
    /// When it has failed.
    pub(crate) fn is_done(&self) -> Result<bool> {
        use cl3::event::{CL_COMPLETE, CL_EVENT_COMMAND_EXECUTION_STATUS};
        let status = cl3::event::get_event_info(self.raw(), CL_EVENT_COMMAND_EXECUTION_STATUS)
            .named("clGetEventInfo")?
            .to_int();
        if status < 0 { Err(status).named("a kernel") } else { Ok(status == CL_COMPLETE) }
    }

    /// When the command began on the device and when it ended, in nanoseconds of the device's clock. It must be done.
    pub(crate) fn interval(&self) -> Result<(u64, u64)> {
        Ok((self.start()?, self.end()?))
    }

    /// When it began.
    pub(crate) fn start(&self) -> Result<u64> {
        self.time(cl3::event::CL_PROFILING_COMMAND_START)
    }

    /// When it ended.
    pub(crate) fn end(&self) -> Result<u64> {
        self.time(cl3::event::CL_PROFILING_COMMAND_END)
    }

    fn time(&self, what: cl3::event::cl_profiling_info) -> Result<u64> {
        cl3::event::get_event_profiling_info(self.raw(), what)
            .named("clGetEventProfilingInfo")
            .map(|info| info.to_ulong())
    }

    /// Seconds from the command's start on the device to its end. The command must be done.
    pub(crate) fn seconds(&self) -> Result<f64> {
        let (start, end) = self.interval()?;
        Ok(end.saturating_sub(start) as f64 * 1e-9)
    }
}
