//! The pods of this node, as the CNI's node agent reports them over ZDS.
