//! Label and field selectors as they stand in query strings.

use super::object::Object;
use super::status::ApiError;

/// All terms must hold.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq)]
struct LabelTerm {
    key: String,
    test: LabelTest,
}

#[derive(Clone, Debug, PartialEq)]
enum LabelTest {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Above(i64),
    Below(i64),
}

#[derive(Clone, Debug, PartialEq)]
struct FieldTerm {
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads both selectors. Only `indexed` fields, name and namespace may be selected by.
    pub fn parse(labels: &str, fields: &str, indexed: &[&str]) -> Result<Self, ApiError> {
        let labels = parse_labels(labels)
            .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))?;
        let fields = parse_fields(fields)?;
        for term in &fields {
            let path = term.path.as_str();
            let known = matches!(path, "metadata.name" | "metadata.namespace");
            if !known && !indexed.contains(&path) {
                let message = format!("field label not supported: {path}");
                return Err(ApiError::bad_request(message));
            }
        }
        Ok(Self { labels, fields })
    }

    pub fn matches(&self, object: &Object) -> bool {
        self.labels.iter().all(|term| term.matches(object))
            && self.fields.iter().all(|term| term.matches(object))
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The only name that can match, if the selector says one.
    pub fn name(&self) -> Option<&str> {
        let term = self.fields.iter().find(|term| term.equal && term.path == "metadata.name")?;
        Some(&term.value)
    }
}

impl LabelTerm {
    fn matches(&self, object: &Object) -> bool {
        let value = object.labels.iter().find(|(key, _)| **key == *self.key).map(|(_, v)| &**v);
        let number = || value.and_then(|text| text.parse::<i64>().ok());
        match &self.test {
            LabelTest::In(values) => value.is_some_and(|v| values.iter().any(|one| one == v)),
            LabelTest::NotIn(values) => !value.is_some_and(|v| values.iter().any(|one| one == v)),
            LabelTest::Exists => value.is_some(),
            LabelTest::Absent => value.is_none(),
            LabelTest::Above(bound) => number().is_some_and(|v| v > *bound),
            LabelTest::Below(bound) => number().is_some_and(|v| v < *bound),
        }
    }
}

impl FieldTerm {
    fn matches(&self, object: &Object) -> bool {
        let value = match self.path.as_str() {
            "metadata.name" => &object.key.name,
            "metadata.namespace" => &object.key.namespace,
            path => match object.fields.iter().find(|(name, _)| *name == path) {
                Some((_, value)) => value,
                None => "",
            },
        };
        (value == self.value) == self.equal
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, ApiError> {
    let mut terms = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = part.split_once("==") {
            (path, value, true)
        } else if let Some((path, value)) = part.split_once('=') {
            (path, value, true)
        } else {
            let message = format!("invalid selector: '{text}'; can't understand '{part}'");
            return Err(ApiError::bad_request(message));
        };
        terms.push(FieldTerm { path: path.trim().into(), value: value.trim().into(), equal });
    }
    Ok(terms)
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, String> {
    split_outside_parentheses(text)
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parse_label_term)
        .collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_label_term(part: &str) -> Result<LabelTerm, String> {
    let term = |key: &str, test| {
        let key = key.trim();
        let name = key.rsplit('/').next().unwrap_or_default();
        let fits = !name.is_empty()
            && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
        if fits {
            Ok(LabelTerm { key: key.into(), test })
        } else {
            Err(format!("invalid label key \"{key}\""))
        }
    };
    if let Some(key) = part.strip_prefix('!') {
        return term(key, LabelTest::Absent);
    }
    if let Some((head, list)) = part.split_once('(') {
        let list =
            list.strip_suffix(')').ok_or_else(|| format!("found '{part}', expected: ')'"))?;
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        return match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => term(key, LabelTest::In(values)),
            Some((key, "notin")) => term(key, LabelTest::NotIn(values)),
            _ => Err(format!("found '{part}', expected: in, notin")),
        };
    }
    let number = |value: &str| {
        value.trim().parse().map_err(|error| {
            format!("for 'Gt', 'Lt' operators, the value must be an integer: '{value}': {error}")
        })
    };
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = part.split_once(operator) {
            let values = vec![value.trim().to_owned()];
            if !values[0].chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
                return Err(format!("invalid label value: \"{}\"", values[0]));
            }
            return term(key, if equal { LabelTest::In(values) } else { LabelTest::NotIn(values) });
        }
    }
    if let Some((key, value)) = part.split_once('>') {
        return term(key, LabelTest::Above(number(value)?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return term(key, LabelTest::Below(number(value)?));
    }
    if part.contains(char::is_whitespace) {
        return Err(format!("found '{part}', expected: !, in, notin, =, ==, !=, gt, lt"));
    }
    term(part, LabelTest::Exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(labels: &str, fields: &str, expected: bool) {
        let mut value = json!({
            "metadata": { "name": "a", "namespace": "ns", "labels": { "app": "web", "n": "5", "x/y": "" } },
            "spec": { "nodeName": "node-1" },
        });
        let object = Object::new(&mut value, 1, &["spec.nodeName", "status.phase"]);
        let selector = Selector::parse(labels, fields, &["spec.nodeName", "status.phase"]).unwrap();
        assert_eq!(selector.matches(&object), expected, "{labels} {fields}");
    }

    #[test]
    fn label_selectors() {
        check("", "", true);
        check("app=web", "", true);
        check("app==db", "", false);
        check("app!=db,app", "", true);
        check("missing!=x", "", true);
        check("app in (db, web)", "", true);
        check("app notin (db,web)", "", false);
        check("missing notin (a)", "", true);
        check("!missing,x/y", "", true);
        check("!app", "", false);
        check("n>4,n<6", "", true);
        check("n>5", "", false);
        check("x/y=", "", true);
    }

    #[test]
    fn field_selectors() {
        check("", "metadata.name=a", true);
        check("", "metadata.name!=a", false);
        check("", "spec.nodeName=node-1,metadata.namespace==ns", true);
        check("", "status.phase=", true);
        check("", "status.phase!=Running", true);
    }

    #[test]
    fn nonsense_is_refused() {
        for labels in ["a in (b", "a b", "=x", "a in b", "n>x", "a=b c"] {
            assert!(Selector::parse(labels, "", &[]).is_err(), "{labels}");
        }
        assert!(Selector::parse("", "spec.nodeName=x", &[]).is_err());
        assert!(Selector::parse("", "novalue", &[]).is_err());
    }
}
