//! What was measured, as text and as pictures.

use std::fmt::Write as _;
use std::path::Path;

use podkv_benches::Result;

use crate::Settings;
use crate::rows::{MORE_IS_BETTER, Row};

/// One row of one contestant, once.
#[derive(Clone, Debug)]
pub struct Sample {
    pub row: &'static str,
    pub contestant: String,
    pub repetition: usize,
    pub values: Vec<(&'static str, f64)>,
}

/// Middle, least and most.
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: *values.get(values.len() / 2)?,
            least: *values.first()?,
            most: *values.last()?,
        })
    }

    fn text(&self) -> String {
        let (median, least, most) = (Short(self.median), Short(self.least), Short(self.most));
        format!("{median} ({least}–{most})")
    }
}

fn of_row<'a>(row: &Row, samples: &'a [Sample]) -> Vec<&'a Sample> {
    samples
        .iter()
        .filter(|sample| sample.row == row.name)
        .collect()
}

/// Names in the order in which they were measured.
fn names<'a, T: PartialEq + ?Sized>(all: impl Iterator<Item = &'a T>) -> Vec<&'a T> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn value(sample: &Sample, metric: &str) -> Option<f64> {
    let found = sample.values.iter().find(|(name, _)| *name == metric);
    found.map(|(_, value)| *value)
}

fn spread(samples: &[&Sample], contestant: &str, metric: &str) -> Option<Spread> {
    let of = samples
        .iter()
        .filter(|sample| sample.contestant == contestant);
    Spread::of(of.filter_map(|sample| value(sample, metric)).collect())
}

/// How much better podkv is than another, repetition by repetition.
fn better(samples: &[&Sample], podkv: &str, other: &str, metric: &str) -> Option<Spread> {
    let in_turn = |name: &str, repetition: usize| {
        let mut own = samples.iter().filter(|sample| sample.contestant == name);
        value(own.find(|sample| sample.repetition == repetition)?, metric)
    };
    let last = samples.iter().map(|sample| sample.repetition).max()?;
    let ratios = (0..=last).filter_map(|repetition| {
        let (podkv, other) = (in_turn(podkv, repetition)?, in_turn(other, repetition)?);
        Some(match MORE_IS_BETTER.contains(&metric) {
            true => podkv / other,
            false => other / podkv,
        })
    });
    Spread::of(ratios.collect())
}

pub fn markdown(settings: &Settings, rows: &[&Row], samples: &[Sample]) -> Result<String> {
    let mut text = format!(
        "{}\n\nMedian (least–most) of {} repetitions, {} s each.\n",
        machine()?,
        settings.repetitions,
        settings.seconds
    );
    for row in rows {
        let samples = of_row(row, samples);
        let contestants = names(samples.iter().map(|sample| sample.contestant.as_str()));
        let metrics = samples.iter().flat_map(|sample| &sample.values);
        let metrics = names(metrics.map(|(metric, _)| *metric));
        write!(text, "\n## {}: {}\n\n| |", row.name, row.what)?;
        for contestant in &contestants {
            write!(text, " {contestant} |")?;
        }
        write!(text, "\n|---|{}\n", "---|".repeat(contestants.len()))?;
        for metric in &metrics {
            write!(text, "| {metric} |")?;
            for contestant in &contestants {
                let spread = spread(&samples, contestant, metric);
                write!(
                    text,
                    " {} |",
                    spread.map_or_else(String::new, |spread| spread.text())
                )?;
            }
            text.push('\n');
        }
        for podkv in contestants.iter().filter(|name| name.starts_with("podkv")) {
            for other in contestants.iter().filter(|name| !name.starts_with("podkv")) {
                if let Some(metric) = metrics.first()
                    && let Some(ratio) = better(&samples, podkv, other, metric)
                {
                    write!(
                        text,
                        "\n- {podkv} beside {other}, {metric}: **{}** ×",
                        ratio.text()
                    )?;
                }
            }
        }
        text.push('\n');
    }
    Ok(text)
}

fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model
        .unwrap_or_default()
        .trim_start_matches(['\t', ' ', ':']);
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    Ok(format!("{cores} × {model}; load at the end {load}."))
}

/// Writes `<rows>.md`, and a picture of each row.
pub fn write(settings: &Settings, rows: &[&Row], samples: &[Sample], report: &str) -> Result<()> {
    std::fs::create_dir_all(&settings.results)?;
    let name = match settings.rows.is_empty() {
        true => "all".to_owned(),
        false => settings.rows.join("+"),
    };
    std::fs::write(settings.results.join(format!("{name}.md")), report)?;
    for row in rows {
        let samples = of_row(row, samples);
        let Some((metric, _)) = samples.first().and_then(|sample| sample.values.first()) else {
            continue;
        };
        let contestants = names(samples.iter().map(|sample| sample.contestant.as_str()));
        let bars = contestants
            .iter()
            .filter_map(|contestant| Some((*contestant, spread(&samples, contestant, metric)?)));
        let title = format!("{}: {metric}", row.what);
        let picture = svg(&title, &bars.collect::<Vec<_>>())?;
        std::fs::write(svg_path(&settings.results, row), picture)?;
    }
    Ok(())
}

fn svg_path(folder: &Path, row: &Row) -> std::path::PathBuf {
    folder.join(format!("{}.svg", row.name))
}

/// One bar each, with a line from the least to the most.
fn svg(title: &str, bars: &[(&str, Spread)]) -> Result<String> {
    const WIDTH: f64 = 640.0;
    const LEFT: f64 = 130.0;
    const BAR: f64 = 28.0;
    const TOP: f64 = 36.0;
    let most = bars
        .iter()
        .map(|(_, spread)| spread.most)
        .fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + value / most * (WIDTH - LEFT - 110.0);
    let height = TOP + BAR * bars.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<text x=\"8\" y=\"20\" font-weight=\"bold\">{title}</text>\n"
    );
    for (index, (name, spread)) in bars.iter().enumerate() {
        let top = TOP + BAR * index as f64;
        let middle = top + BAR / 2.0;
        let colour = if name.starts_with("podkv") {
            "#2a6f97"
        } else {
            "#adb5bd"
        };
        writeln!(svg, "<text x=\"8\" y=\"{:.0}\">{name}</text>", middle + 4.0)?;
        writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>",
            top + 4.0,
            x(spread.median) - LEFT,
            BAR - 8.0
        )?;
        writeln!(
            svg,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>",
            x(spread.least),
            x(spread.most)
        )?;
        writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
            x(spread.most) + 6.0,
            middle + 4.0,
            Short(spread.median)
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// A number with as many digits as are worth reading.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            100.0.. => write!(formatter, "{:.0}", self.0),
            10.0.. => write!(formatter, "{:.1}", self.0),
            _ => write!(formatter, "{:.2}", self.0),
        }
    }
}
