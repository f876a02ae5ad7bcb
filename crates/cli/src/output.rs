//! How answers are printed: tables for people, JSON and YAML for programs, a section per node.

use std::fmt::{Display, Write as _};
use std::io::{ErrorKind, IsTerminal, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::args::{Ask, Format};
use crate::nodes::{Node, Nodes};

/// Whether every agent has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    /// Some have not; that was said on stderr.
    Partial,
}

/// A question to one or many agents.
pub(crate) struct Report {
    pub(crate) nodes: Nodes,
    pub(crate) output: Option<Format>,
}

impl Report {
    pub(crate) fn new(ask: &Ask) -> Result<Self> {
        Ok(Self { nodes: Nodes::select(&ask.whom)?, output: ask.output })
    }

    /// Asks every agent and prints the answers. An agent that does not answer is an error, unless
    /// others do.
    pub(crate) fn each<T: Serialize>(
        &self,
        fetch: impl Fn(&Node) -> Result<T>,
        render: impl Fn(&T) -> String,
    ) -> Result<Outcome> {
        if !self.nodes.sections {
            let node = self.nodes.all.first().context("there is no agent to ask")?;
            let answer = fetch(node).map_err(explain)?;
            self.print_one(&answer, render)?;
            return Ok(Outcome::Complete);
        }
        let mut outcome = Outcome::Complete;
        let mut answers = Vec::new();
        for node in &self.nodes.all {
            match fetch(node) {
                Ok(answer) => answers.push((node.label(), answer)),
                Err(error) => {
                    eprintln!("{}: {}", node.label(), one_line(&explain(error)));
                    outcome = Outcome::Partial;
                }
            }
        }
        self.print_sections(&answers, render)?;
        Ok(outcome)
    }

    fn print_one<T: Serialize>(&self, answer: &T, render: impl Fn(&T) -> String) -> Result<()> {
        match self.output {
            Some(format) => print(&encode(answer, format)?),
            None => print(&render(answer)),
        }
    }

    fn print_sections<T: Serialize>(
        &self,
        answers: &[(String, T)],
        render: impl Fn(&T) -> String,
    ) -> Result<()> {
        if let Some(format) = self.output {
            let mut object = Map::new();
            for (name, answer) in answers {
                object.insert(name.clone(), serde_json::to_value(answer)?);
            }
            return print(&encode(&Value::Object(object), format)?);
        }
        let style = Style::of_stdout();
        let mut text = String::new();
        for (index, (name, answer)) in answers.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            let _ = write!(
                text,
                "{gap}{}\n{}",
                style.bold(format_args!("Node {name}")),
                render(answer)
            );
        }
        print(&text)
    }
}

/// What an error that the operating system explains badly means here.
pub(crate) fn explain(error: anyhow::Error) -> anyhow::Error {
    let denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
    });
    if denied { error.context("only root may do this: run it with sudo") } else { error }
}

/// An error and its causes in one line. What repeats its cause in its own words is not said twice.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for words in error.chain().map(ToString::to_string) {
        if !line.contains(&words) {
            let gap = if line.is_empty() { "" } else { ": " };
            line += &format!("{gap}{words}");
        }
    }
    line
}

/// A value as JSON or YAML, with a line end.
pub(crate) fn encode(value: &impl Serialize, format: Format) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => {
            let text = serde_saphyr::to_string(value)?;
            if text.ends_with('\n') { text } else { text + "\n" }
        }
    })
}

/// Prints to stdout. A reader that has seen enough, as `head` does, is fine.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Columns of text. A cell may have several lines; the other cells of its row are then blank.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// Blanks between two columns.
const COLUMN_GAP: usize = 3;

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.flat_map(|cell| cell.lines()).map(|line| line.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let height = row.iter().map(|cell| cell.lines().count()).max().unwrap_or(0).max(1);
            for line in 0..height {
                let mut text = String::new();
                for (cell, width) in row.iter().zip(&widths) {
                    let part = cell.lines().nth(line).unwrap_or_default();
                    let _ = write!(text, "{part:<width$}{:COLUMN_GAP$}", "");
                }
                writeln!(f, "{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Colours, where a person looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    pub(crate) fn of_stdout() -> Self {
        // https://no-color.org
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && std::io::stdout().is_terminal() }
    }

    pub(crate) fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    pub(crate) fn good(self, text: impl Display) -> String {
        self.paint("32", text)
    }

    pub(crate) fn warning(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    pub(crate) fn bad(self, text: impl Display) -> String {
        self.paint("31", text)
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn causes_are_told_once() {
        let gone = || std::io::Error::from(ErrorKind::NotFound);
        let repeats = anyhow::Error::from(gone()).context(format!("open map: {}", gone()));
        let error = repeats.context("cannot show the map");
        assert_eq!(one_line(&error), "cannot show the map: open map: entity not found");
    }

    #[test]
    fn cells_may_have_several_lines() {
        let mut table = Table::new(&["ID", "LABELS", "STATE"]);
        table.row(vec!["1".into(), "reserved:host".into(), "ready".into()]);
        table.row(vec!["12345".into(), "k8s:a=b\nk8s:c=d".into(), String::new()]);
        expect![[r"
            ID      LABELS          STATE
            1       reserved:host   ready
            12345   k8s:a=b
                    k8s:c=d
        "]]
        .assert_eq(&table.to_string());
    }

    #[test]
    fn colour_is_only_for_terminals() {
        assert_eq!(Style::PLAIN.bad("Failure"), "Failure");
        assert_eq!(Style { colour: true }.bad("Failure"), "\x1b[31mFailure\x1b[0m");
    }
}
