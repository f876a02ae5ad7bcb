//! What Kubernetes adds to the functions of CEL: addresses, URLs, amounts, lists, regular
//! expressions.
//!
//! `docs/reference/lab.md` lists them. Each is declared in a table with the types that it
//! takes, by which the interpreter picks it, and its result, which `types` needs.

use std::net::IpAddr;
use std::sync::Arc;

use cel::common::types::{INT_TYPE, LIST_TYPE, STRING_TYPE, Type};
use cel::common::value::CowVal;
use cel::objects::{Opaque, Value};
use cel::{Env, ExecutionError, extensions};
use ipnet::IpNet;
use regex::Regex;

use super::types::Ty;

type Result<T> = std::result::Result<T, ExecutionError>;
type Function = for<'b, 'v> fn(Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>>;

/// Largest program of a regular expression that a rule may make.
const REGEX_BYTES_MAX: usize = 1 << 20;

pub(super) const IP: &str = "net.IP";
pub(super) const CIDR: &str = "net.CIDR";
pub(super) const URL: &str = "kubernetes.URL";
pub(super) const QUANTITY: &str = "kubernetes.Quantity";

#[derive(Debug, PartialEq, Eq)]
struct Ip(IpAddr);

#[derive(Debug, PartialEq, Eq)]
struct Cidr(IpNet);

#[derive(Debug, PartialEq, Eq)]
struct Url {
    scheme: String,
    /// With the port, if there is one.
    host: String,
    path: String,
    query: String,
}

/// An amount, in thousand-millionths.
#[derive(Debug, PartialEq, Eq)]
struct Quantity(i128);

const NANO: i128 = 1_000_000_000;

macro_rules! opaque {
    ($($name:ident = $type:expr),*) => { $(
        impl Opaque for $name {
            fn runtime_type_name(&self) -> &str {
                $type
            }
        }
    )* };
}
opaque!(Ip = IP, Cidr = CIDR, Url = URL, Quantity = QUANTITY);

/// A function as it is declared.
pub(super) struct Declared {
    pub name: &'static str,
    /// Called on its first argument.
    pub member: bool,
    arguments: &'static [Argument],
    /// What it gives.
    pub result: Ty<'static>,
    function: Function,
}

#[derive(Clone, Copy)]
enum Argument {
    Text,
    Int,
    List,
    Opaque(&'static str),
}

impl Argument {
    fn to_type(self) -> Type {
        match self {
            Self::Text => STRING_TYPE,
            Self::Int => INT_TYPE,
            Self::List => LIST_TYPE,
            Self::Opaque(name) => Type::new_opaque_type(name),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Int => "int",
            Self::List => "list",
            Self::Opaque(name) => name,
        }
    }
}

/// The functions and types that rules can use.
pub(super) fn environment() -> Env {
    let mut env = Env::stdlib();
    env.add_extension(extensions::strings).expect("declared once");
    for name in [IP, CIDR, URL, QUANTITY] {
        env.add_type(Type::new_opaque_type(name)).expect("declared once");
    }
    for one in DECLARED {
        let words: Vec<&str> = one.arguments.iter().map(|argument| argument.words()).collect();
        let id = format!("{}_{}", one.name, words.join("_"));
        let mut types = one.arguments.iter().map(|argument| argument.to_type());
        let added = if one.member {
            let target = types.next().unwrap_or(STRING_TYPE);
            env.add_member_overload(one.name, &id, target, types.collect(), one.function)
        } else {
            env.add_overload(one.name, &id, types.collect(), one.function)
        };
        added.unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    env
}

const fn global(
    name: &'static str,
    arguments: &'static [Argument],
    result: Ty<'static>,
    function: Function,
) -> Declared {
    Declared { name, member: false, arguments, result, function }
}

const fn member(
    name: &'static str,
    arguments: &'static [Argument],
    result: Ty<'static>,
    function: Function,
) -> Declared {
    Declared { name, member: true, arguments, result, function }
}

const TEXT: &[Argument] = &[Argument::Text];
const LIST: &[Argument] = &[Argument::List];
const ADDRESS: &[Argument] = &[Argument::Opaque(IP)];
const PREFIX: &[Argument] = &[Argument::Opaque(CIDR)];
const LINK: &[Argument] = &[Argument::Opaque(URL)];
const AMOUNT: &[Argument] = &[Argument::Opaque(QUANTITY)];
const AMOUNTS: &[Argument] = &[Argument::Opaque(QUANTITY), Argument::Opaque(QUANTITY)];
const AMOUNT_INT: &[Argument] = &[Argument::Opaque(QUANTITY), Argument::Int];

pub(super) const DECLARED: &[Declared] = &[
    // Addresses.
    global("isIP", TEXT, Ty::Bool, |a| bool(parse_ip(&text(&a, 0)?).is_ok())),
    global("ip", TEXT, Ty::Opaque(IP), |a| opaque(Ip(parse_ip(&text(&a, 0)?)?))),
    global("ip.isCanonical", TEXT, Ty::Bool, |a| {
        let text = text(&a, 0)?;
        bool(parse_ip(&text)?.to_string() == text)
    }),
    global("string", ADDRESS, Ty::String, |a| string(ip(&a, 0)?.to_string())),
    member("family", ADDRESS, Ty::Int, |a| int(if ip(&a, 0)?.is_ipv4() { 4 } else { 6 })),
    member("isUnspecified", ADDRESS, Ty::Bool, |a| bool(ip(&a, 0)?.is_unspecified())),
    member("isLoopback", ADDRESS, Ty::Bool, |a| bool(ip(&a, 0)?.is_loopback())),
    member("isLinkLocalMulticast", ADDRESS, Ty::Bool, |a| {
        bool(match ip(&a, 0)? {
            IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
            IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
        })
    }),
    member("isLinkLocalUnicast", ADDRESS, Ty::Bool, |a| bool(is_link_local(ip(&a, 0)?))),
    member("isGlobalUnicast", ADDRESS, Ty::Bool, |a| {
        let ip = ip(&a, 0)?;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let special =
            ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip);
        bool(!broadcast && !special)
    }),
    // Prefixes.
    global("isCIDR", TEXT, Ty::Bool, |a| bool(parse_cidr(&text(&a, 0)?).is_ok())),
    global("cidr", TEXT, Ty::Opaque(CIDR), |a| opaque(Cidr(parse_cidr(&text(&a, 0)?)?))),
    global("string", PREFIX, Ty::String, |a| string(cidr(&a, 0)?.to_string())),
    member("containsIP", &[Argument::Opaque(CIDR), Argument::Text], Ty::Bool, |a| {
        bool(cidr(&a, 0)?.contains(&parse_ip(&text(&a, 1)?)?))
    }),
    member("containsIP", &[Argument::Opaque(CIDR), Argument::Opaque(IP)], Ty::Bool, |a| {
        bool(cidr(&a, 0)?.contains(&ip(&a, 1)?))
    }),
    member("containsCIDR", &[Argument::Opaque(CIDR), Argument::Text], Ty::Bool, |a| {
        bool(cidr(&a, 0)?.trunc().contains(&parse_cidr(&text(&a, 1)?)?.trunc()))
    }),
    member("containsCIDR", &[Argument::Opaque(CIDR), Argument::Opaque(CIDR)], Ty::Bool, |a| {
        bool(cidr(&a, 0)?.trunc().contains(&cidr(&a, 1)?.trunc()))
    }),
    member("ip", PREFIX, Ty::Opaque(IP), |a| opaque(Ip(cidr(&a, 0)?.addr()))),
    member("masked", PREFIX, Ty::Opaque(CIDR), |a| opaque(Cidr(cidr(&a, 0)?.trunc()))),
    member("prefixLength", PREFIX, Ty::Int, |a| int(i64::from(cidr(&a, 0)?.prefix_len()))),
    // URLs.
    global("isURL", TEXT, Ty::Bool, |a| bool(parse_url(&text(&a, 0)?).is_some())),
    global("url", TEXT, Ty::Opaque(URL), |a| {
        let text = text(&a, 0)?;
        opaque(parse_url(&text).ok_or_else(|| {
            fault("url", format!("URL parse error during conversion from string: {text:?}"))
        })?)
    }),
    member("getScheme", LINK, Ty::String, |a| with_url(&a, |url| url.scheme.clone())),
    member("getHost", LINK, Ty::String, |a| with_url(&a, |url| url.host.clone())),
    member("getHostname", LINK, Ty::String, |a| {
        with_url(&a, |url| host_and_port(&url.host).0.trim_matches(['[', ']']).to_owned())
    }),
    member("getPort", LINK, Ty::String, |a| {
        with_url(&a, |url| host_and_port(&url.host).1.to_owned())
    }),
    member("getEscapedPath", LINK, Ty::String, |a| with_url(&a, |url| url.path.clone())),
    member("getQuery", LINK, Ty::Dyn, |a| {
        let url = value(&a, 0)?;
        let url = as_opaque::<Url>(&url)?;
        let mut map: std::collections::HashMap<String, Vec<String>> = Default::default();
        for (key, value) in form_urlencoded::parse(url.query.as_bytes()) {
            map.entry(key.into_owned()).or_default().push(value.into_owned());
        }
        give(map.into())
    }),
    // Amounts.
    global("isQuantity", TEXT, Ty::Bool, |a| bool(parse_quantity(&text(&a, 0)?).is_some())),
    global("quantity", TEXT, Ty::Opaque(QUANTITY), |a| {
        let text = text(&a, 0)?;
        opaque(Quantity(parse_quantity(&text).ok_or_else(|| {
            fault("quantity", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
        })?))
    }),
    member("sign", AMOUNT, Ty::Int, |a| int(amount(&a, 0)?.signum() as i64)),
    member("isInteger", AMOUNT, Ty::Bool, |a| bool(whole(amount(&a, 0)?).is_some())),
    member("asInteger", AMOUNT, Ty::Int, |a| {
        int(whole(amount(&a, 0)?)
            .ok_or_else(|| fault("asInteger", "cannot convert value to integer"))?)
    }),
    member("asApproximateFloat", AMOUNT, Ty::Double, |a| {
        give(Value::Float(amount(&a, 0)? as f64 / NANO as f64))
    }),
    member("add", AMOUNTS, Ty::Opaque(QUANTITY), |a| sum(amount(&a, 0)?, amount(&a, 1)?)),
    member("add", AMOUNT_INT, Ty::Opaque(QUANTITY), |a| {
        sum(amount(&a, 0)?, i128::from(integer(&a, 1)?) * NANO)
    }),
    member("sub", AMOUNTS, Ty::Opaque(QUANTITY), |a| sum(amount(&a, 0)?, -amount(&a, 1)?)),
    member("sub", AMOUNT_INT, Ty::Opaque(QUANTITY), |a| {
        sum(amount(&a, 0)?, -i128::from(integer(&a, 1)?) * NANO)
    }),
    member("isGreaterThan", AMOUNTS, Ty::Bool, |a| bool(amount(&a, 0)? > amount(&a, 1)?)),
    member("isLessThan", AMOUNTS, Ty::Bool, |a| bool(amount(&a, 0)? < amount(&a, 1)?)),
    member("compareTo", AMOUNTS, Ty::Int, |a| int(amount(&a, 0)?.cmp(&amount(&a, 1)?) as i64)),
    // Lists.
    member("isSorted", LIST, Ty::Bool, |a| {
        let list = list(&a, 0)?;
        let mut sorted = true;
        for pair in list.windows(2) {
            sorted &= compare(&pair[0], &pair[1])? != std::cmp::Ordering::Greater;
        }
        bool(sorted)
    }),
    member("sum", LIST, Ty::Dyn, |a| {
        let list = list(&a, 0)?;
        let mut items = list.iter();
        let Some(first) = items.next() else { return int(0) };
        give(items.try_fold(first.clone(), |total, one| total_of(&total, one))?)
    }),
    member("min", LIST, Ty::Dyn, |a| extreme(&list(&a, 0)?, std::cmp::Ordering::Less, "min")),
    member("max", LIST, Ty::Dyn, |a| extreme(&list(&a, 0)?, std::cmp::Ordering::Greater, "max")),
    // Regular expressions.
    member("find", &[Argument::Text, Argument::Text], Ty::String, |a| {
        let (text, pattern) = (text(&a, 0)?, regex(&text(&a, 1)?)?);
        string(pattern.find(&text).map_or_else(String::new, |found| found.as_str().to_owned()))
    }),
    member("findAll", &[Argument::Text, Argument::Text], Ty::Dyn, |a| find_all(&a, i64::MAX)),
    member("findAll", &[Argument::Text, Argument::Text, Argument::Int], Ty::Dyn, |a| {
        find_all(&a, integer(&a, 2)?)
    }),
];

/// Whether this names one of the types that are ours.
pub(super) fn is_type_name(name: &str) -> bool {
    [IP, CIDR, URL, QUANTITY].contains(&name)
}

fn fault(function: &str, message: impl ToString) -> ExecutionError {
    ExecutionError::function_error(function, message)
}

fn give<'b, 'v>(value: Value) -> Result<CowVal<'b, 'v>> {
    Ok(CowVal::Owned(value.try_into()?))
}

fn bool<'b, 'v>(value: bool) -> Result<CowVal<'b, 'v>> {
    give(Value::Bool(value))
}

fn int<'b, 'v>(value: i64) -> Result<CowVal<'b, 'v>> {
    give(Value::Int(value))
}

fn string<'b, 'v>(value: String) -> Result<CowVal<'b, 'v>> {
    give(Value::String(value.into()))
}

fn opaque<'b, 'v>(value: impl Opaque) -> Result<CowVal<'b, 'v>> {
    give(Value::Opaque(Arc::new(value)))
}

fn value(arguments: &[CowVal<'_, '_>], index: usize) -> Result<Value> {
    let argument = arguments.get(index).ok_or_else(ExecutionError::missing_argument_or_target)?;
    Value::try_from(argument.as_ref())
}

fn unexpected(value: &Value, want: &str) -> ExecutionError {
    ExecutionError::UnexpectedType { got: value.type_of().to_string(), want: want.to_owned() }
}

fn text(arguments: &[CowVal<'_, '_>], index: usize) -> Result<String> {
    match value(arguments, index)? {
        Value::String(text) => Ok(Arc::unwrap_or_clone(text)),
        other => Err(unexpected(&other, "string")),
    }
}

fn integer(arguments: &[CowVal<'_, '_>], index: usize) -> Result<i64> {
    match value(arguments, index)? {
        Value::Int(number) => Ok(number),
        other => Err(unexpected(&other, "int")),
    }
}

fn list(arguments: &[CowVal<'_, '_>], index: usize) -> Result<Vec<Value>> {
    match value(arguments, index)? {
        Value::List(list) => Ok(Arc::unwrap_or_clone(list)),
        other => Err(unexpected(&other, "list")),
    }
}

fn as_opaque<T: Opaque>(value: &Value) -> Result<&T> {
    let found = match value {
        Value::Opaque(inner) => inner.downcast_ref::<T>(),
        _ => None,
    };
    found.ok_or_else(|| unexpected(value, std::any::type_name::<T>()))
}

fn ip(arguments: &[CowVal<'_, '_>], index: usize) -> Result<IpAddr> {
    Ok(as_opaque::<Ip>(&value(arguments, index)?)?.0)
}

fn cidr(arguments: &[CowVal<'_, '_>], index: usize) -> Result<IpNet> {
    Ok(as_opaque::<Cidr>(&value(arguments, index)?)?.0)
}

fn amount(arguments: &[CowVal<'_, '_>], index: usize) -> Result<i128> {
    Ok(as_opaque::<Quantity>(&value(arguments, index)?)?.0)
}

fn with_url<'b, 'v>(
    arguments: &[CowVal<'b, 'v>],
    part: impl Fn(&Url) -> String,
) -> Result<CowVal<'b, 'v>> {
    string(part(as_opaque::<Url>(&value(arguments, 0)?)?))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    let ip: IpAddr = text.parse().map_err(|error| {
        let words =
            format!("IP Address {text:?} parse error during conversion from string: {error}");
        fault("ip", words)
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(fault("ip", format!("IPv4-mapped IPv6 address {text:?} is not allowed")))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet> {
    text.parse().map_err(|error| {
        let words = format!("CIDR {text:?} parse error during conversion from string: {error}");
        fault("cidr", words)
    })
}

/// Absolute, or a path from the root, as Go's `ParseRequestURI` wants it.
fn parse_url(text: &str) -> Option<Url> {
    let uri: http::Uri = text.parse().ok()?;
    let scheme = uri.scheme_str().unwrap_or_default().to_owned();
    if scheme.is_empty() && !text.starts_with('/') {
        return None;
    }
    let host = uri
        .authority()
        .map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default().to_owned());
    // Our parser adds the path that the text does not have.
    let after = text.split_once("://").map_or(text, |(_, rest)| rest);
    let path = if after.contains('/') { uri.path().to_owned() } else { String::new() };
    let query = uri.query().unwrap_or_default().to_owned();
    Some(Url { scheme, host: host.unwrap_or_default(), path, query })
}

fn host_and_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// `1.5Gi`, `100m`, `1e3`, in thousand-millionths. `None`: not an amount, or beyond all use.
fn parse_quantity(text: &str) -> Option<i128> {
    let digits_end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && "+-".contains(*c))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(digits_end);
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (1_000 * NANO, 1),
        "P" => (1_000_000 * NANO, 1),
        "E" => (NANO * NANO, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    let scaled = digits.checked_mul(NANO)?.checked_mul(factor)?;
    let scaled = scaled / divisor / 10_i128.checked_pow(fraction.len() as u32)?;
    Some(if negative { -scaled } else { scaled })
}

fn whole(amount: i128) -> Option<i64> {
    (amount % NANO == 0).then(|| i64::try_from(amount / NANO).ok()).flatten()
}

fn sum<'b, 'v>(a: i128, b: i128) -> Result<CowVal<'b, 'v>> {
    opaque(Quantity(a.checked_add(b).ok_or_else(|| fault("add", "the amount is too large"))?))
}

fn total_of(a: &Value, b: &Value) -> Result<Value> {
    let overflow = || fault("sum", "integer overflow");
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        (Value::UInt(a), Value::UInt(b)) => a.checked_add(*b).map(Value::UInt).ok_or_else(overflow),
        (Value::Float(a), Value::Float(b)) => Ok(Value::Float(a + b)),
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(b).map(Value::Duration).ok_or_else(overflow)
        }
        _ => Err(unexpected(b, "int, uint, double or duration")),
    }
}

fn compare(a: &Value, b: &Value) -> Result<std::cmp::Ordering> {
    a.partial_cmp(b).ok_or_else(|| ExecutionError::ValuesNotComparable(a.clone(), b.clone()))
}

fn extreme<'b, 'v>(
    list: &[Value],
    wanted: std::cmp::Ordering,
    name: &str,
) -> Result<CowVal<'b, 'v>> {
    let mut items = list.iter();
    let mut best =
        items.next().ok_or_else(|| fault(name, format!("{name} called on empty list")))?;
    for one in items {
        if compare(one, best)? == wanted {
            best = one;
        }
    }
    give(best.clone())
}

fn regex(pattern: &str) -> Result<Regex> {
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .map_err(|error| fault("find", format!("Illegal regex: {error}")))
}

fn find_all<'b, 'v>(arguments: &[CowVal<'b, 'v>], limit: i64) -> Result<CowVal<'b, 'v>> {
    let (text, pattern) = (text(arguments, 0)?, regex(&text(arguments, 1)?)?);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let found = pattern.find_iter(&text).take(limit).map(|one| one.as_str().to_owned());
    give(found.collect::<Vec<String>>().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cel::Context;

    /// Each line evaluates to true.
    #[test]
    fn functions_give_what_kubernetes_documents() {
        let lines = r#"
            isIP('127.0.0.1') && isIP('::1') && !isIP('127.0.0.256') && !isIP('::ffff:1.2.3.4')
            ip('192.168.0.1').family() == 4 && ip('fd00::1').family() == 6
            ip.isCanonical('2001:db8::abcd') && !ip.isCanonical('2001:DB8::ABCD')
            ip('0.0.0.0').isUnspecified() && ip('::1').isLoopback() && ip('10.0.0.1').isGlobalUnicast()
            ip('fe80::1').isLinkLocalUnicast() && ip('224.0.0.1').isLinkLocalMulticast()
            string(ip('2001:DB8::1')) == '2001:db8::1'
            ip('127.0.0.1') == ip('127.0.0.1') && ip('127.0.0.1') != ip('10.0.0.1')
            isCIDR('192.168.0.0/24') && !isCIDR('192.168.0.0') && !isCIDR('10.0.0.0/33')
            cidr('192.168.0.0/24').containsIP('192.168.0.1') && !cidr('192.168.0.0/24').containsIP(ip('192.168.1.1'))
            cidr('192.168.0.0/16').containsCIDR('192.168.10.0/24') && !cidr('192.168.1.0/24').containsCIDR(cidr('192.168.0.0/16'))
            cidr('192.168.1.5/24').masked() == cidr('192.168.1.0/24') && cidr('fd00::/8').prefixLength() == 8
            cidr('192.168.1.5/24').ip().family() == 4 && string(cidr('10.0.0.0/8')) == '10.0.0.0/8'
            isURL('https://example.com:80/') && isURL('/path') && !isURL('../relative') && !isURL('example.com')
            url('https://user@example.com:80/a%20b?k=a&k=b').getHost() == 'example.com:80'
            url('https://example.com:80/a').getHostname() == 'example.com' && url('https://[::1]:80/').getPort() == '80'
            url('https://example.com').getEscapedPath() == '' && url('https://e.com/a%20b').getEscapedPath() == '/a%20b'
            url('https://example.com/?k=a&k=b').getQuery()['k'] == ['a', 'b']
            isQuantity('1.3G') && isQuantity('100m') && !isQuantity('three') && !isQuantity('1.2.3')
            quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('50k').add(quantity('50000')) == quantity('100k')
            quantity('50k').sub(20) == quantity('49980') && quantity('1500m').asApproximateFloat() == 1.5
            quantity('1e3').asInteger() == 1000 && !quantity('50m').isInteger() && quantity('-1').sign() == -1
            quantity('200M').compareTo(quantity('0.2G')) == 0
            [1, 2, 3].isSorted() && !['b', 'a'].isSorted() && [1, 3].sum() == 4 && [1.0].sum() == 1.0
            [2, 1, 3].min() == 1 && ['a', 'c', 'b'].max() == 'c'
            'abc 123'.find('[0-9]+') == '123' && '123 abc 456'.findAll('[0-9]+') == ['123', '456']
            '1 2 3'.findAll('[0-9]', 2).size() == 2 && 'x'.find('[0-9]') == ''
            'a,b'.split(',') == ['a', 'b'] && 'AB'.lowerAscii() == 'ab' && ['a', 'b'].join('-') == 'a-b'
            duration('90s') < duration('2m') && 'abc'.matches('^a.c$') && 'abc'.startsWith('a')
        "#;
        let env = Arc::new(environment());
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let program = env.compile(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let result = program.execute(&Context::with_env(env.clone()));
            assert_eq!(result, Ok(Value::Bool(true)), "{line}");
        }
        for line in
            ["ip('x')", "cidr('x')", "url('x y')", "quantity('x')", "[].max()", "'a'.find('(')"]
        {
            let program = env.compile(line).unwrap();
            assert!(program.execute(&Context::with_env(env.clone())).is_err(), "{line}");
        }
    }
}
