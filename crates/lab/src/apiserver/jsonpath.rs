//! The part of JSONPath that printer columns use.

use serde_json::Value;

/// A parsed path, such as `.status.conditions[?(@.type=="Ready")].status`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items of which the value at the path equals (or does not) the literal.
    Filter {
        path: Vec<String>,
        equal: bool,
        literal: Value,
    },
}

impl JsonPath {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after).ok_or_else(|| format!("unclosed bracket in {text}"))?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
                continue;
            }
            let after = rest.strip_prefix('.').unwrap_or(rest);
            let (name, tail) = field(after);
            match name.as_str() {
                "" if tail.starts_with('[') => {}
                "" => return Err(format!("empty field name in {text}")),
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = tail;
        }
        Ok(Self(steps))
    }

    /// All values that the path leads to.
    pub(super) fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![root];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.follow(value)).collect();
        }
        found
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::Index(index) => {
                let Some(items) = value.as_array() else { return Vec::new() };
                let at = if *index < 0 { items.len() as i64 + index } else { *index };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Filter { path, equal, literal } => {
                let fits = |item: &&Value| {
                    let at = path.iter().try_fold(*item, |at, name| at.get(name));
                    at.is_some_and(|at| (at == literal) == *equal)
                };
                value.as_array().into_iter().flatten().filter(fits).collect()
            }
        }
    }
}

/// A field name, in which a backslash escapes the next character.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// The bracket that closes the one before `text`, quotes and nesting considered.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (left, right, equal) = match (filter.split_once("=="), filter.split_once("!=")) {
            (Some((left, right)), _) => (left, right, true),
            (_, Some((left, right))) => (left, right, false),
            _ => return Err(format!("filter without == or !=: {filter}")),
        };
        let path = left.trim().trim_start_matches('@').trim_start_matches('.');
        let path = path.split('.').map(str::to_owned).collect();
        return Ok(Step::Filter { path, equal, literal: literal(right.trim()) });
    }
    if let Some(name) = unquote(text) {
        return Ok(Step::Field(name.to_owned()));
    }
    text.parse().map(Step::Index).map_err(|error| format!("{text} is not an index: {error}"))
}

fn literal(text: &str) -> Value {
    match unquote(text) {
        Some(inner) => Value::String(inner.to_owned()),
        None => serde_json::from_str(text).unwrap_or(Value::Null),
    }
}

fn unquote(text: &str) -> Option<&str> {
    let quoted = |quote: char| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    quoted('"').or_else(|| quoted('\''))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(path: &str, expected: &[Value]) {
        let object = json!({ "a": { "b.c": 1, "d": [10, 20, 30] },
            "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Other", "status": "False" }] });
        let path = JsonPath::parse(path).unwrap();
        let found: Vec<Value> = path.find(&object).into_iter().cloned().collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn paths() {
        check(".a.d[1]", &[json!(20)]);
        check("{.a.d[-1]}", &[json!(30)]);
        check("$.a.d[*]", &[json!(10), json!(20), json!(30)]);
        check(r".a.b\.c", &[json!(1)]);
        check("['a']['b.c']", &[json!(1)]);
        check(r#".conditions[?(@.type=="Ready")].status"#, &[json!("True")]);
        check(".conditions[?(@.type!='Ready')].status", &[json!("False")]);
        check(".missing.x", &[]);
        assert!(JsonPath::parse(".a[").is_err());
        assert!(JsonPath::parse(".a[x]").is_err());
    }
}
