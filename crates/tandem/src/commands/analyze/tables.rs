//! The analysis for a person.

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use indicatif::DecimalBytes;
use tandem_onnx::analysis::{Analysis, Device, OperationReport, PROMPT, PassReport};

pub(super) fn text(analysis: &Analysis) -> String {
    format!(
        "machine          {}\nfigures          {}\n\n{}\n\n{}\n\n{}\n\n{}\n\n{}",
        analysis.machine.description,
        analysis.machine.source,
        operators(&analysis.operations),
        notes(&analysis.operations),
        devices(&analysis.operations),
        critical(analysis),
        memory(analysis),
    )
}

/// What ONNX has.
fn operators(operations: &[OperationReport]) -> String {
    let mut table = table(&["operation", "standard ONNX", "newer standard", "ONNX Runtime's own"]);
    for operation in operations {
        let newer = operation.onnx.newer_standard;
        table.add_row([
            operation.name.to_owned(),
            operation.onnx.standard.join(" "),
            newer.map_or_else(String::new, |(name, version)| format!("{name} ({version})")),
            operation.onnx.contrib.join(" "),
        ]);
    }
    table.to_string()
}

/// What is to be said of several operations is said once.
fn notes(operations: &[OperationReport]) -> String {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    let mut add = |text: String, name| match lines.iter_mut().find(|(line, _)| *line == text) {
        Some((_, names)) => names.push(name),
        None => lines.push((text, vec![name])),
    };
    for operation in operations {
        if let Some(note) = operation.onnx.note {
            add(note.to_owned(), operation.name);
        }
        if let Some(reason) = operation.onnx.custom_kernel {
            add(format!("needs a kernel of its own: {reason}"), operation.name);
        }
    }
    let lines = lines.into_iter().map(|(text, names)| format!("{}: {text}", names.join(", ")));
    lines.collect::<Vec<_>>().join("\n")
}

/// Where to compute.
fn devices(operations: &[OperationReport]) -> String {
    let prompt = format!("prompt of {PROMPT}");
    let mut table = table(&["operation", "decode", "bytes", "why", &prompt, "why"]);
    let device = |pass: &PassReport| match pass.placement.device {
        Device::Cpu => "CPU",
        Device::Gpu => "GPU",
        Device::Both => "both",
    };
    for operation in operations {
        table.add_row([
            operation.name.to_owned(),
            device(&operation.decode).to_owned(),
            DecimalBytes(operation.decode.cost.bytes).to_string(),
            operation.decode.placement.reason.clone(),
            device(&operation.prefill).to_owned(),
            operation.prefill.placement.reason.clone(),
        ]);
    }
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn critical(analysis: &Analysis) -> String {
    let mut table = table(&["critical kernel", "of decode", "of a prompt"]);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for kernel in &analysis.critical_kernels {
        let shares = [percent(kernel.decode_share), percent(kernel.prefill_share)];
        table.add_row([kernel.name.to_owned()].into_iter().chain(shares));
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn memory(analysis: &Analysis) -> String {
    let memory = &analysis.memory;
    let fits = match memory.fits {
        Some(true) => ", fits",
        Some(false) => ", DOES NOT FIT",
        None => "",
    };
    format!(
        "memory           {} of weights, {} of f16 keys and values at full context{fits}: {}",
        DecimalBytes(memory.weight_bytes),
        DecimalBytes(memory.kv_bytes),
        memory.strategy,
    )
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}
