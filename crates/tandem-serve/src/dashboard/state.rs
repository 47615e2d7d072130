//! What the dashboard shows, as JSON has it: docs/server.md defines the fields.

use serde::Serialize;
use tandem_runtime::{BandwidthState, PlanState, TimelineState, TokenState};
use utoipa::ToSchema;

/// Everything that the page shows.
#[derive(Serialize, ToSchema)]
pub(crate) struct DashboardState {
    /// Tandem's version.
    pub(crate) version: &'static str,
    /// Seconds since the server started.
    pub(crate) uptime_s: f64,
    /// The model.
    pub(crate) model: ModelFigures,
    /// Tokens read and written.
    pub(crate) tokens: TokenFigures,
    /// Texts that were asked for.
    pub(crate) requests: RequestFigures,
    /// Memory of the process.
    pub(crate) memory: MemoryFigures,
    /// Use of the memory's bandwidth.
    pub(crate) bandwidth: BandwidthFigures,
    /// The bandwidth token.
    pub(crate) token: TokenState,
    /// Use of the experts.
    pub(crate) experts: ExpertFigures,
    /// The last token.
    pub(crate) timeline: Option<TimelineState>,
    /// What is computed where.
    pub(crate) plan: Vec<PlanState>,
}

/// The model.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelFigures {
    /// Its name.
    pub(crate) id: String,
    /// Tokens that one text may have.
    pub(crate) context: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Experts of a layer.
    pub(crate) experts: usize,
    /// Experts that a token uses.
    pub(crate) experts_per_token: usize,
}

/// Tokens read and written.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenFigures {
    /// Tokens of prompts per second, of late.
    pub(crate) prompt_per_s: Option<f64>,
    /// Tokens written per second, of late.
    pub(crate) generated_per_s: Option<f64>,
    /// Tokens of prompts of texts that have ended.
    pub(crate) prompt_total: u64,
    /// Those of them that were cached.
    pub(crate) cached_total: u64,
    /// Tokens written.
    pub(crate) generated_total: u64,
    /// The curves.
    pub(crate) history: Vec<TokenSample>,
}

/// A point of the curves.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) struct TokenSample {
    /// When, on the scale of `uptime_s`.
    pub(crate) t_s: f64,
    /// Tokens of prompts per second.
    pub(crate) prompt_per_s: Option<f64>,
    /// Tokens written per second.
    pub(crate) generated_per_s: Option<f64>,
}

/// Texts that were asked for.
#[derive(Serialize, ToSchema)]
pub(crate) struct RequestFigures {
    /// Those that are read or written.
    pub(crate) running: usize,
    /// Those that wait.
    pub(crate) waiting: usize,
    /// How many may be read or written at a time.
    pub(crate) max_running: usize,
    /// How many may wait.
    pub(crate) max_waiting: usize,
    /// Those that came to their end.
    pub(crate) completed: u64,
    /// Those that failed or took too long.
    pub(crate) failed: u64,
    /// Those whose client went away.
    pub(crate) cancelled: u64,
    /// Those that found the queue full.
    pub(crate) refused: u64,
}

/// Memory of the process, in MB of 10^6 bytes.
#[derive(Serialize, ToSchema)]
pub(crate) struct MemoryFigures {
    /// Resident now.
    pub(crate) resident_mb: Option<f64>,
    /// The most that was.
    pub(crate) peak_mb: Option<f64>,
}

/// Use of the memory's bandwidth.
#[derive(Serialize, ToSchema)]
pub(crate) struct BandwidthFigures {
    #[serde(flatten)]
    pub(crate) state: BandwidthState,
    /// Of the CPU now, in GB/s.
    pub(crate) cpu_gbps: Option<f64>,
    /// Of the iGPU now, in GB/s.
    pub(crate) igpu_gbps: Option<f64>,
    /// Of both, or of the whole machine where its memory controller tells, in GB/s.
    pub(crate) total_gbps: Option<f64>,
    /// The curves.
    pub(crate) history: Vec<BandwidthSample>,
}

/// A point of the curves.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) struct BandwidthSample {
    /// When, on the scale of `uptime_s`.
    pub(crate) t_s: f64,
    /// Of the CPU, in GB/s.
    pub(crate) cpu_gbps: Option<f64>,
    /// Of the iGPU, in GB/s.
    pub(crate) igpu_gbps: Option<f64>,
    /// Of both or of the whole machine, in GB/s.
    pub(crate) total_gbps: Option<f64>,
}

/// Use of the experts.
#[derive(Serialize, ToSchema)]
pub(crate) struct ExpertFigures {
    /// A row for each layer, with the tokens that each expert got.
    pub(crate) counts: Vec<Vec<u64>>,
}
