//! What people can type after `hubble`.
//!
//! Filters are a table, [`filters::FLAGS`](super::filters::FLAGS), for what they mean depends on
//! their order: `--not` is about the next one.

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, Command, value_parser};

use super::filters::FLAGS;

/// The whole program.
pub(super) fn command() -> Command {
    Command::new("hubble")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Look at the flows of a cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .args(connection())
        .subcommand(observe())
        .subcommand(explain())
        .subcommand(output(
            Command::new("status").about("Show whether the server is well, and what it has seen"),
            &["compact", "dict", "json", "tab", "table"],
        ))
        .subcommand(
            Command::new("list")
                .about("List nodes or namespaces")
                .subcommand_required(true)
                .subcommand(output(
                    Command::new("nodes").visible_alias("node").about("List nodes with Hubble"),
                    &["table", "wide", "json", "yaml"],
                ))
                .subcommand(output(
                    Command::new("namespaces")
                        .visible_aliases(["namespace", "ns"])
                        .about("List namespaces with recent flows"),
                    &["table", "json", "yaml"],
                )),
        )
        .subcommand(
            Command::new("watch")
                .about("Watch what changes")
                .subcommand_required(true)
                .subcommand(Command::new("peers").about("Watch the nodes that an agent knows")),
        )
        .subcommand(config())
        .subcommand(Command::new("version").about("Print the version"))
        .subcommand(Command::new("completion").about("Print a script that completes commands").arg(
            Arg::new("shell").required(true).value_parser(value_parser!(clap_complete::Shell)),
        ))
}

/// Options that are settings too: the same names are in the file and, in capitals, in the
/// environment.
pub(super) const SETTINGS: [(&str, &str, &str); 9] = [
    ("server", "ADDRESS", "Server, host:port, tls://host:port or unix:///path"),
    ("tls", "", "Use TLS"),
    ("tls-allow-insecure", "", "Use TLS and believe any server"),
    ("tls-ca-cert-files", "FILES", "Authorities of the server's certificate"),
    ("tls-client-cert-file", "FILE", "Certificate to show to the server"),
    ("tls-client-key-file", "FILE", "Key of that certificate"),
    ("tls-server-name", "NAME", "Name that the server's certificate must have"),
    ("timeout", "DURATION", "Time that connecting may take, 5s by default"),
    ("request-timeout", "DURATION", "Time that an answer may take, 12s by default"),
];

fn connection() -> Vec<Arg> {
    let setting = |(name, value, help): (&'static str, &'static str, &'static str)| {
        let arg = Arg::new(name).long(name).help(help).global(true).help_heading("Server");
        match value {
            "" => arg.action(ArgAction::SetTrue),
            value => arg.value_name(value),
        }
    };
    let config = Arg::new("config").long("config").value_name("FILE").global(true);
    let mut all: Vec<Arg> = SETTINGS.into_iter().map(setting).collect();
    all.push(config.help("Configuration file").help_heading("Server"));
    all
}

fn output(command: Command, formats: &[&'static str]) -> Command {
    command.arg(
        Arg::new("output")
            .short('o')
            .long("output")
            .value_name("FORMAT")
            .value_parser(PossibleValuesParser::new(formats.iter().copied()))
            .default_value(formats[0])
            .help("How to print"),
    )
}

fn observe() -> Command {
    let observe = |name: &'static str, about: &'static str| {
        let command = Command::new(name).about(about).args(selectors()).args(formatting());
        output(command, &["compact", "dict", "json", "jsonpb", "tab", "table"])
    };
    let flows = |name, about| observe(name, about).args(flow_options()).args(filters());
    flows("observe", "Observe flows, and what agents do")
        .args_conflicts_with_subcommands(true)
        .subcommand(flows("flows", "Observe flows"))
        .subcommand(observe("agent-events", "Observe what agents do"))
        .subcommand(observe("debug-events", "Observe debug messages of the datapath"))
}

fn explain() -> Command {
    Command::new("explain")
        .about("Explain what was done with a flow, and what would have to change")
        .arg(Arg::new("flow").value_name("UUID").help("The flow, by the uuid that `-o json` shows"))
        .arg(
            Arg::new("last-drop")
                .long("last-drop")
                .action(ArgAction::SetTrue)
                .conflicts_with("flow")
                .help("The newest flow that was dropped"),
        )
        .args(filters())
}

fn selectors() -> Vec<Arg> {
    let number = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("N").value_parser(value_parser!(u64));
        arg.help(help).help_heading("Selectors")
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help).help_heading("Selectors")
    };
    let time = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("TIME").help(help).help_heading("Selectors")
    };
    vec![
        switch("all", "Everything that the server has kept"),
        number("last", "The last N; 20 where nothing else is selected").conflicts_with("all"),
        number("first", "The first N").conflicts_with_all(["all", "last", "follow"]),
        switch("follow", "Go on with what comes").short('f'),
        time("since", "From then on: 2023-11-14T22:13:20Z, or 5m ago"),
        time("until", "Until then"),
        Arg::new("input-file")
            .long("input-file")
            .value_name("FILE")
            .help("Read `-o jsonpb` output from a file, or - for standard input, and no server")
            .help_heading("Selectors"),
    ]
}

fn formatting() -> Vec<Arg> {
    let heading = "Formatting";
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help).help_heading(heading)
    };
    let on = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_parser(value_parser!(bool)).num_args(0..=1);
        arg.require_equals(true)
            .default_missing_value("true")
            .default_value("true")
            .help(help)
            .help_heading(heading)
    };
    vec![
        switch("print-node-name", "Print which node saw it"),
        switch("print-policy-names", "Print the policies that decided"),
        switch("numeric", "Numbers instead of names of identities, addresses instead of pods"),
        on("ip-translation", "Names of pods and services instead of addresses"),
        Arg::new("time-format")
            .long("time-format")
            .value_name("FORMAT")
            .value_parser([
                "StampMilli",
                "YearMonthDay",
                "YearMonthDayHourMinuteSecond",
                "RFC3339",
                "RFC3339Milli",
                "RFC3339Micro",
                "RFC3339Nano",
                "RFC1123Z",
            ])
            .default_value("StampMilli")
            .help("How times are printed")
            .help_heading(heading),
        Arg::new("color")
            .long("color")
            .value_parser(["auto", "always", "never"])
            .default_value("auto")
            .help("Colour words")
            .help_heading(heading),
        switch("silent-errors", "Do not print what goes wrong on the way"),
        switch("debug", "Print all that the relay says about nodes"),
    ]
}

fn flow_options() -> Vec<Arg> {
    let heading = "Formatting";
    let raw = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("JSON").action(ArgAction::Append);
        arg.help(help).help_heading("Filters")
    };
    vec![
        Arg::new("field-mask")
            .long("field-mask")
            .alias("experimental-field-mask")
            .value_name("PATHS")
            .value_delimiter(',')
            .help("Fields of flows that are asked for, such as source.pod_name; with -o json")
            .help_heading(heading),
        Arg::new("use-default-field-masks")
            .long("use-default-field-masks")
            .alias("experimental-use-default-field-masks")
            .value_parser(value_parser!(bool))
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("true")
            .help("Ask only for the fields that are printed")
            .help_heading(heading),
        Arg::new("print-raw-filters")
            .long("print-raw-filters")
            .action(ArgAction::SetTrue)
            .help("Print the filters as JSON, and ask nobody")
            .help_heading(heading),
        raw("allowlist", "Flows that match this FlowFilter"),
        raw("denylist", "Flows that do not match this FlowFilter"),
    ]
}

fn filters() -> Vec<Arg> {
    FLAGS
        .iter()
        .map(|flag| {
            let mut arg =
                Arg::new(flag.name).long(flag.name).help(flag.help).help_heading("Filters");
            if let Some(short) = flag.short {
                arg = arg.short(short);
            }
            if let Some(default) = flag.when_bare {
                arg.action(ArgAction::Append).num_args(0).default_missing_value(default)
            } else {
                arg.action(ArgAction::Append).value_name(flag.value).value_delimiter(None)
            }
        })
        .collect()
}

fn config() -> Command {
    let key = || Arg::new("key").value_name("KEY").required(true);
    Command::new("config")
        .about("Look at the settings and change them")
        .subcommand_required(true)
        .subcommand(Command::new("get").about("Print a setting").arg(key().required(false)))
        .subcommand(
            Command::new("set")
                .about("Write a setting to the file")
                .arg(key())
                .arg(Arg::new("value").value_name("VALUE").default_value("")),
        )
        .subcommand(
            Command::new("reset")
                .about("Remove a setting, or all of them, from the file")
                .arg(key().required(false)),
        )
        .subcommand(Command::new("view").about("Print all settings"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
