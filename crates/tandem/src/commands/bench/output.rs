//! The rows of a bench as a table and as CSV.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use tandem_gpu::CacheStatistics;

use super::Row;

/// llama-bench's table, with columns of our own after its.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let with_gpu = rows.iter().any(|r| r.igpu_share.is_some());
    let mut header = vec![
        "model",
        "size",
        "params",
        "backend",
        "threads",
        "test",
        "t/s",
        "GB/s read",
        "Gop/s int8",
        "roofline",
        "barriers",
    ];
    let with_several = rows.iter().any(|r| r.sequences > 1);
    if with_several {
        header.push("t/s each");
    }
    let is_capped = rows.iter().any(|r| r.background_gbps.is_some());
    if is_capped {
        header.push("GB/s used");
    }
    if with_gpu {
        header.extend(["waits", "GPU"]);
    }
    let with_cache = rows.iter().any(|r| r.expert_cache.is_some());
    if with_cache {
        header.extend(["hits", "overlap"]);
    }
    table.set_header(header);
    for r in rows {
        let spread = r
            .tokens_per_second_all
            .iter()
            .map(|x| (x - r.tokens_per_second).abs())
            .fold(0.0, f64::max);
        let mut cells = vec![
            r.model.clone(),
            format!("{:.2} GiB", r.size_bytes as f64 / f64::from(1 << 30)),
            format!("{:.2} B", r.params as f64 / 1e9),
            r.backend.clone(),
            r.threads.to_string(),
            r.test.clone(),
            format!("{:.2} ± {spread:.2}", r.tokens_per_second),
            format!("{:.1}", r.read_bandwidth / 1e9),
            format!("{:.0}", r.int8_peak / 1e9),
            r.roofline.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
            r.barriers_per_token.map_or_else(String::new, |count| format!("{count:.0}")),
        ];
        if with_several {
            cells.push(format!("{:.2}", r.tokens_per_second / r.sequences as f64));
        }
        if is_capped {
            cells.push(format!("{:.2}", r.used_bandwidth / 1e9));
        }
        if with_gpu {
            cells.push(r.waits_per_token.map_or_else(String::new, |count| format!("{count:.1}")));
            cells.push(r.igpu_share.map_or_else(String::new, |s| format!("{:.0} %", 100.0 * s)));
        }
        if with_cache {
            let percent = |share: f64| format!("{:.0} %", 100.0 * share);
            let of = |share: fn(&CacheStatistics) -> f64| {
                r.expert_cache.as_ref().map_or_else(String::new, |done| percent(share(done)))
            };
            cells.extend([of(CacheStatistics::hit_rate), of(CacheStatistics::overlap)]);
        }
        table.add_row(cells);
    }
    for column in [1, 2, 4].into_iter().chain(6..17) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// All columns, whatever takes part.
pub(super) fn csv(rows: &[Row]) -> String {
    let mut text = "model,size_bytes,params,backend,threads,test,tokens_per_second,read_bandwidth,\
                    int8_peak,roofline,barriers_per_token,waits_per_token,igpu_share,sequences,\
                    used_bandwidth,expert_hit_rate,expert_overlap\n"
        .to_owned();
    for r in rows {
        let share = r.roofline.map_or_else(String::new, |share| format!("{share:.4}"));
        let barriers = r.barriers_per_token.map_or_else(String::new, |count| format!("{count:.1}"));
        let waits = r.waits_per_token.map_or_else(String::new, |count| format!("{count:.1}"));
        let igpu = r.igpu_share.map_or_else(String::new, |share| format!("{share:.4}"));
        let cache = |share: fn(&CacheStatistics) -> f64| {
            r.expert_cache.as_ref().map_or_else(String::new, |done| format!("{:.4}", share(done)))
        };
        let (hits, overlap) = (cache(CacheStatistics::hit_rate), cache(CacheStatistics::overlap));
        // Names of files and devices may have commas.
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        text += &format!(
            "{},{},{},{},{},{},{:.3},{:.0},{:.0},{share},{barriers},{waits},{igpu},{},{:.0},{hits},{overlap}\n",
            quoted(&r.model),
            r.size_bytes,
            r.params,
            quoted(&r.backend),
            r.threads,
            r.test,
            r.tokens_per_second,
            r.read_bandwidth,
            r.int8_peak,
            r.sequences,
            r.used_bandwidth
        );
    }
    text.trim_end().to_owned()
}
