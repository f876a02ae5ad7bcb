//! Which labels of a pod make its identity.
//!
//! Labels that change with every pod (a template hash, an index) must not: each set of labels that
//! gets through is an identity of its own.

use crate::label::{Label, Labels, SOURCE_ANY, SOURCE_RESERVED};

/// Rules that decide, longest match first, whether a label is part of the identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFilter {
    rules: Vec<Rule>,
    /// What happens to a label that no rule matches.
    include_by_default: bool,
}

/// One rule: a prefix of a key, perhaps of one source only.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    include: bool,
    source: Option<String>,
    pattern: Pattern,
}

/// What a key is compared with. A label expression is a regular expression to Cilium; the ones that
/// people write are prefixes, with `.*` before or after and `\.` for a dot, and those are understood.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// The pattern began with `.*`: the text may stand anywhere.
    anywhere: bool,
    /// The pattern ended with `$`: the key ends with the text.
    to_the_end: bool,
    text: String,
}

/// A rule of the option `labels` cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelFilterError {
    /// No key follows.
    #[error("label filter {rule:?} names no key; write [!][source:]prefix")]
    Empty {
        /// The rule.
        rule: String,
    },
    /// The rule is a regular expression beyond prefixes.
    #[error(
        "label filter {rule:?} uses {character:?}; only prefixes are understood, \
         with `.*` before or after, and `\\.` for a dot"
    )]
    Unsupported {
        /// The rule.
        rule: String,
        /// The character that is not understood.
        character: char,
    },
}

/// What Cilium filters by default. It holds under a whitelist too, or pods of different namespaces
/// could share an identity.
const DEFAULT: [&str; 21] = [
    "reserved:.*",
    "io\\.kubernetes\\.pod\\.namespace",
    "io\\.cilium\\.k8s\\.namespace\\.labels",
    "app\\.kubernetes\\.io",
    "io\\.cilium\\.k8s\\.policy\\.cluster",
    "io\\.cilium\\.k8s\\.policy\\.serviceaccount",
    "!io\\.kubernetes",
    "!kubernetes\\.io",
    "!statefulset\\.kubernetes\\.io/pod-name",
    "!apps\\.kubernetes\\.io/pod-index",
    "!batch\\.kubernetes\\.io/job-completion-index",
    "!batch\\.kubernetes\\.io/controller-uid",
    "!.*beta\\.kubernetes\\.io",
    "!k8s\\.io",
    "!pod-template-generation",
    "!pod-template-hash",
    "!controller-revision-hash",
    "!controller-uid",
    "!annotation.*",
    "!etcd_node",
    "!topology\\.kubernetes\\.io",
];

impl Default for LabelFilter {
    fn default() -> Self {
        let rules = DEFAULT.iter().map(|rule| Rule::parse(rule).expect("the defaults are valid"));
        Self { rules: rules.collect(), include_by_default: true }
    }
}

impl LabelFilter {
    /// The default filter and the rules of the option `labels`: separated by blanks, or commas, each
    /// `[!][source:]prefix`. One rule without `!` makes the list a whitelist.
    pub fn parse(option: &str) -> Result<Self, LabelFilterError> {
        let mut filter = Self::default();
        let texts = option.split(|c: char| c.is_whitespace() || c == ',').filter(|t| !t.is_empty());
        for text in texts {
            let rule = Rule::parse(text)?;
            filter.include_by_default &= !rule.include;
            filter.rules.push(rule);
        }
        Ok(filter)
    }

    /// Whether the label is part of the identity.
    pub fn includes(&self, label: &Label) -> bool {
        if label.source == SOURCE_RESERVED {
            return true;
        }
        // Of rules that match equally much, the later wins: the user's come after the defaults.
        let best = self.rules.iter().filter(|rule| rule.matches(label));
        match best.max_by_key(|rule| rule.pattern.text.len()) {
            Some(rule) => rule.include,
            None => self.include_by_default,
        }
    }

    /// The labels that are part of the identity.
    pub fn apply(&self, labels: &Labels) -> Labels {
        labels.iter().filter(|label| self.includes(label)).cloned().collect()
    }
}

impl Rule {
    fn parse(rule: &str) -> Result<Self, LabelFilterError> {
        let (include, rest) = match rule.strip_prefix('!') {
            Some(rest) => (false, rest),
            None => (true, rule),
        };
        let (source, key) = match rest.split_once(':') {
            Some((source, key)) => (Some(source.to_owned()).filter(|s| s != SOURCE_ANY), key),
            None => (None, rest),
        };
        if key.is_empty() {
            return Err(LabelFilterError::Empty { rule: rule.to_owned() });
        }
        Ok(Self { include, source, pattern: Pattern::parse(rule, key)? })
    }

    fn matches(&self, label: &Label) -> bool {
        self.source.as_ref().is_none_or(|source| *source == label.source)
            && self.pattern.matches(&label.key)
    }
}

impl Pattern {
    fn parse(rule: &str, key: &str) -> Result<Self, LabelFilterError> {
        let key = key.strip_prefix('^').unwrap_or(key);
        let (anywhere, key) = match key.strip_prefix(".*") {
            Some(rest) => (true, rest),
            None => (false, key),
        };
        let (to_the_end, key) = match key.strip_suffix('$') {
            Some(rest) => (true, rest),
            None => (false, key.strip_suffix(".*").unwrap_or(key)),
        };
        let mut text = String::new();
        let mut characters = key.chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => text.extend(characters.next()),
                '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' => {
                    return Err(LabelFilterError::Unsupported { rule: rule.to_owned(), character });
                }
                _ => text.push(character),
            }
        }
        Ok(Self { anywhere, to_the_end, text })
    }

    fn matches(&self, key: &str) -> bool {
        match (self.anywhere, self.to_the_end) {
            (false, false) => key.starts_with(&self.text),
            (false, true) => key == self.text,
            (true, false) => key.contains(&self.text),
            (true, true) => key.ends_with(&self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(option: &str, label: &str, included: bool) {
        let filter = LabelFilter::parse(option).unwrap();
        assert_eq!(filter.includes(&label.parse().unwrap()), included, "{option:?} {label:?}");
    }

    #[test]
    fn defaults() {
        check("", "k8s:app=web", true);
        check("", "k8s:app.kubernetes.io/name=web", true);
        check("", "k8s:io.kubernetes.pod.namespace=default", true);
        check("", "k8s:io.kubernetes.pod.name=web-1", false);
        check("", "k8s:io.cilium.k8s.namespace.labels.team=a", true);
        check("", "k8s:pod-template-hash=5d4", false);
        check("", "k8s:statefulset.kubernetes.io/pod-name=db-0", false);
        check("", "k8s:apps.kubernetes.io/pod-index=0", false);
        check("", "k8s:failure-domain.beta.kubernetes.io/zone=a", false);
        check("", "k8s:topology.kubernetes.io/zone=a", false);
        check("", "k8s:annotation.x=y", false);
        check("", "reserved:host", true);
    }

    #[test]
    fn an_inclusion_makes_a_whitelist() {
        check("k8s:app", "k8s:app=web", true);
        check("k8s:app", "k8s:tier=front", false);
        check("k8s:app", "cni:app=web", false);
        check("k8s:app", "k8s:io.kubernetes.pod.namespace=default", true);
        check("k8s:app", "k8s:io.cilium.k8s.policy.cluster=lab", true);
        check("k8s:app$", "k8s:application=web", false);
    }

    #[test]
    fn exclusions_do_not() {
        check("!k8s:tier", "k8s:app=web", true);
        check("!k8s:tier", "k8s:tier=front", false);
        check("!app\\.kubernetes\\.io/version", "k8s:app.kubernetes.io/version=1", false);
        check("!app\\.kubernetes\\.io/version", "k8s:app.kubernetes.io/name=web", true);
    }

    #[test]
    fn the_longest_match_wins() {
        check("k8s:a !k8s:a.b k8s:a.b.c", "k8s:a.x=1", true);
        check("k8s:a !k8s:a.b k8s:a.b.c", "k8s:a.b.x=1", false);
        check("k8s:a !k8s:a.b k8s:a.b.c", "k8s:a.b.c=1", true);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let error = LabelFilter::parse("k8s:(a|b)").unwrap_err();
        assert!(error.to_string().contains("'('"), "{error}");
        assert!(LabelFilter::parse("!").is_err());
        assert!(LabelFilter::parse("k8s:").is_err());
    }
}
