//! `hubble observe`: asks for flows, or for what agents do, and prints what comes.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::hubble::flow::Flow;
use api::hubble::observer::get_flows_response::ResponseTypes;
use api::hubble::observer::observer_client::ObserverClient;
use api::hubble::observer::{
    GetAgentEventsRequest, GetDebugEventsRequest, GetFlowsRequest, GetFlowsResponse,
};
use api::hubble::{from_json, to_json};
use clap::ArgMatches;
use flow::filter::Selection;
use flow::message::{nanoseconds, timestamp};
use flow::observer::now_ns;
use prost_types::{FieldMask, Timestamp};
use tonic::Streaming;

use super::config::Settings;
use super::print::Printer;
use super::{connect, filters};

/// How many records are asked for where nothing says how many.
const LAST_DEFAULT: u64 = 20;

/// The fields that lines are made of.
const DEFAULT_MASK: [&str; 32] = [
    "time",
    "verdict",
    "drop_reason_desc",
    "auth_type",
    "ethernet",
    "IP",
    "l4",
    "l7",
    "source.identity",
    "source.namespace",
    "source.pod_name",
    "destination.identity",
    "destination.namespace",
    "destination.pod_name",
    "source_names",
    "destination_names",
    "source_service",
    "destination_service",
    "Type",
    "node_name",
    "is_reply",
    "event_type",
    "traffic_direction",
    "policy_match_type",
    "debug_capture_point",
    "sock_xlate_point",
    "Summary",
    "ip_trace_id",
    "egress_allowed_by",
    "ingress_allowed_by",
    "egress_denied_by",
    "ingress_denied_by",
];

/// Which records are asked for.
struct Range {
    number: u64,
    first: bool,
    follow: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Range {
    fn new(matches: &ArgMatches) -> Result<Self> {
        let (last, first) = (matches.get_one::<u64>("last"), matches.get_one::<u64>("first"));
        let follow = matches.get_flag("follow");
        let (since, until) = (time(matches, "since")?, time(matches, "until")?);
        let is_open = follow || matches.get_flag("all") || since.is_some() || until.is_some();
        let number = match (first, last) {
            (Some(number), _) | (None, Some(number)) => *number,
            (None, None) if is_open => 0,
            (None, None) => LAST_DEFAULT,
        };
        Ok(Self { number, first: first.is_some(), follow, since, until })
    }
}

/// A time, or how long ago it was.
fn time(matches: &ArgMatches, name: &str) -> Result<Option<Timestamp>> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    if let Ok(ago) = crate::args::duration(text) {
        let ago_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
        return Ok(Some(timestamp(now_ns().saturating_sub(ago_ns))));
    }
    let parsed = text.parse::<Timestamp>().ok();
    parsed.map(Some).with_context(|| {
        format!("--{name} {text:?}: write a time as 2023-11-14T22:13:20Z, or how long ago, as 5m")
    })
}

/// The request that the flags make.
pub(super) fn request(matches: &ArgMatches, whole_messages: bool) -> Result<GetFlowsRequest> {
    let Range { number, first, follow, since, until } = Range::new(matches)?;
    let (whitelist, blacklist) = filters::lists(matches)?;
    let paths: Vec<String> =
        matches.get_many::<String>("field-mask").into_iter().flatten().cloned().collect();
    let by_default = *matches.get_one("use-default-field-masks").unwrap_or(&true);
    let field_mask = match (paths.is_empty(), whole_messages || !by_default) {
        (false, false) => bail!("--field-mask: give -o json with it, for lines need more fields"),
        (false, true) => Some(FieldMask { paths }),
        (true, true) => None,
        (true, false) => {
            Some(FieldMask { paths: DEFAULT_MASK.iter().map(|path| (*path).to_owned()).collect() })
        }
    };
    Ok(GetFlowsRequest {
        number,
        first,
        follow,
        since,
        until,
        whitelist,
        blacklist,
        field_mask,
        ..GetFlowsRequest::default()
    })
}

/// `hubble observe`, and `hubble observe flows`.
pub(super) async fn flows(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let mut printer = Printer::new(matches);
    let request = request(matches, printer.is_json())?;
    if matches.get_flag("print-raw-filters") {
        return print_filters(&request);
    }
    if let Some(file) = matches.get_one::<String>("input-file") {
        return from_file(file, &request, &mut printer);
    }
    let (channel, server) = connect(settings).await?;
    let call = ObserverClient::new(channel).get_flows(request).await;
    let mut stream = call.map_err(|status| failed(&server, &status))?.into_inner();
    while let Some(response) = next(&mut stream, &server).await? {
        if is_closed(printer.response(&response))? {
            return Ok(());
        }
    }
    is_closed(printer.flush()).map(drop)
}

/// `hubble observe agent-events`.
pub(super) async fn agent_events(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let Range { number, first, follow, since, until } = Range::new(matches)?;
    let request = GetAgentEventsRequest { number, first, follow, since, until };
    let mut printer = Printer::new(matches);
    let (channel, server) = connect(settings).await?;
    let call = ObserverClient::new(channel).get_agent_events(request).await;
    let mut stream = call.map_err(|status| failed(&server, &status))?.into_inner();
    while let Some(response) = next(&mut stream, &server).await? {
        if is_closed(printer.agent_event(&response))? {
            return Ok(());
        }
    }
    is_closed(printer.flush()).map(drop)
}

/// `hubble observe debug-events`.
pub(super) async fn debug_events(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let Range { number, first, follow, since, until } = Range::new(matches)?;
    let request = GetDebugEventsRequest { number, first, follow, since, until };
    let mut printer = Printer::new(matches);
    let (channel, server) = connect(settings).await?;
    let call = ObserverClient::new(channel).get_debug_events(request).await;
    let mut stream = call.map_err(|status| failed(&server, &status))?.into_inner();
    while let Some(response) = next(&mut stream, &server).await? {
        if is_closed(printer.debug_event(&response))? {
            return Ok(());
        }
    }
    is_closed(printer.flush()).map(drop)
}

/// The next message. An interrupt ends a stream as its end does.
async fn next<T>(stream: &mut Streaming<T>, server: &str) -> Result<Option<T>> {
    tokio::select! {
        message = stream.message() => message.map_err(|status| failed(server, &status)),
        _ = tokio::signal::ctrl_c() => Ok(None),
    }
}

/// An error of a server, in words.
pub(super) fn failed(server: &str, status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{server}: {:?}: {}", status.code(), status.message())
}

/// Whether the reader of our output has seen enough, as `head` has.
fn is_closed(printed: Result<()>) -> Result<bool> {
    match printed {
        Ok(()) => Ok(false),
        Err(error) => {
            let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
                return Ok(true);
            }
            Err(error)
        }
    }
}

fn print_filters(request: &GetFlowsRequest) -> Result<()> {
    let list = |name: &str, filters: &[api::hubble::flow::FlowFilter]| {
        if filters.is_empty() {
            return String::new();
        }
        let lines = filters.iter().map(|filter| format!("    - '{}'\n", to_json(filter)));
        format!("{name}:\n{}", lines.collect::<String>())
    };
    let text = list("allowlist", &request.whitelist) + &list("denylist", &request.blacklist);
    crate::output::print(&text)
}

/// Reads responses, or flows, one JSON object per line, and applies the request to them here.
fn from_file<W: std::io::Write>(
    file: &str,
    request: &GetFlowsRequest,
    printer: &mut Printer<W>,
) -> Result<()> {
    let reader: Box<dyn BufRead> = match file {
        "-" => Box::new(std::io::stdin().lock()),
        path => Box::new(BufReader::new(
            std::fs::File::open(path).with_context(|| format!("open {path} (--input-file)"))?,
        )),
    };
    let selection = Selection::new(&request.whitelist, &request.blacklist)?;
    let mut wanted = Vec::new();
    for (index, line) in reader.lines().enumerate() {
        let line = line.with_context(|| format!("read {file}"))?;
        if line.trim().is_empty() {
            continue;
        }
        let response = parse(&line).with_context(|| format!("{file}, line {}", index + 1))?;
        let is_wanted = match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => {
                let time = flow.time.as_ref().map_or(0, nanoseconds);
                time >= request.since.as_ref().map_or(0, nanoseconds)
                    && time <= request.until.as_ref().map_or(u64::MAX, nanoseconds)
                    && selection.matches(flow)
            }
            _ => true,
        };
        if is_wanted {
            wanted.push(response);
        }
    }
    let number = usize::try_from(request.number).unwrap_or(usize::MAX);
    let skip = if request.first || number == 0 { 0 } else { wanted.len().saturating_sub(number) };
    let take = if number == 0 { usize::MAX } else { number };
    for response in wanted.iter().skip(skip).take(take) {
        if is_closed(printer.response(response))? {
            return Ok(());
        }
    }
    is_closed(printer.flush()).map(drop)
}

fn parse(line: &str) -> Result<GetFlowsResponse> {
    let as_response = from_json::<GetFlowsResponse>(line);
    let error = match as_response {
        Ok(response) => return Ok(response),
        Err(error) => error,
    };
    // Older programs wrote the flow alone.
    match from_json::<Flow>(line) {
        Ok(flow) => Ok(GetFlowsResponse {
            response_types: Some(ResponseTypes::Flow(flow)),
            ..GetFlowsResponse::default()
        }),
        Err(_) => Err(error.into()),
    }
}

/// How long an answer may take.
pub(super) fn request_timeout(settings: &Settings) -> Result<Duration> {
    settings.duration("request-timeout", Duration::from_secs(12))
}
